"""Ratings of films by users, as a contextual bandit wants them: MovieLens 1M, or one of our own.

The matrix is that of BanditBench ("EVOLvE", arXiv:2410.06238, from its code): the films with the
most ratings, 0 where a user has rated none of a film, users in an order shuffled by a seed. What is
told of a user is in the ratings as well: age (by its group), gender, job and place (ZIP code).

MovieLens 1M is read through tensorflow-datasets, whose `movielens/1m-ratings` has films and users
joined to every rating. It is not ours to pass on; `prepare` downloads it where there is a network.
"""

import collections
import pathlib
from typing import Any, NamedTuple

import numpy as np

from grpo_jax.data.tfds_source import open_builder, tensorflow_datasets
from grpo_jax.errors import UserError
from grpo_jax.names import one_of

NAME = "movielens/1m-ratings"
AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
_NEEDED = (
  "movie_id", "movie_title", "user_id", "user_rating", "user_gender", "bucketized_user_age",
  "user_occupation_text", "user_zip_code",
)  # fmt: skip


class User(NamedTuple):
  age: int  # the least of its group: a key of AGES
  man: bool
  job: str
  place: str

  def __str__(self) -> str:
    age = AGES.get(self.age, str(self.age))
    return f"{'man' if self.man else 'woman'}, {age}, {self.job}, {self.place}"


class Ratings(NamedTuple):
  table: np.ndarray  # f64[U, K] 1..5, 0 where missing
  titles: tuple[str, ...]  # K, the most rated first
  users: tuple[User, ...]  # U


def load(source: str, films: int, *, path: str | None = None, seed: int = 0) -> Ratings:
  """`source`: "synthetic", or "movielens": a prepared folder at `path`; without one that of the
  usual place of tensorflow-datasets, downloaded if it is not there. The first `films` films.

  Raises UserError for another source, a data set that cannot be had and too few films.
  """
  one_of("data.source", source, ("synthetic", "movielens"))
  if source == "synthetic":
    return synthetic(films, seed=seed)
  return read(prepare() if path is None else path, films, seed=seed)


def prepare(data_dir: str | None = None) -> str:
  """The folder of MovieLens 1M below `data_dir`, downloaded and written if it is not there; that
  needs a network and TensorFlow, reading it neither. UserError, one line, where it fails."""
  tfds = tensorflow_datasets()
  folder = tfds.builder(NAME, data_dir=data_dir).data_path
  if not (pathlib.Path(folder) / "dataset_info.json").is_file():
    try:
      made = tfds.builder(NAME, data_dir=data_dir, file_format="array_record")
      made.download_and_prepare()
    except Exception as error:  # of the network, of a disk, or a missing TensorFlow
      why = " ".join(str(error).split())[:120]
      raise UserError(
        f"data.source='movielens': {NAME} cannot be downloaded here ({type(error).__name__}: "
        f"{why}); give its prepared folder as data.path, or data.source=synthetic"
      ) from error
  return str(folder)


def read(path: str, films: int, *, seed: int = 0) -> Ratings:
  """A prepared folder of `movielens/1m-ratings`, as array_record: all its ratings of the `films`
  films that have the most of them (ties: the lower id first). Rows are read one by one: the million
  of MovieLens takes minutes.

  Raises UserError for a folder of something else, and for fewer films than wanted.
  """
  builder: Any = open_builder(path)
  if missing := [name for name in _NEEDED if name not in builder.info.features]:
    raise UserError(f"data.path: {path!r} has no {missing[0]}; give a folder of {NAME}")
  try:
    stored = builder.as_data_source("train")
  except NotImplementedError as error:
    raise UserError(
      f"data.path: {path!r} is not stored as array_record; prepare it with "
      "file_format='array_record'"
    ) from error
  titles, told, given = {}, {}, []
  for row in stored:
    film, user = int(_text(row["movie_id"])), int(_text(row["user_id"]))
    given.append((user, film, float(row["user_rating"])))
    if film not in titles:
      titles[film] = _title(_text(row["movie_title"]))
    if user not in told:
      told[user] = User(
        int(row["bucketized_user_age"]),
        bool(row["user_gender"]),
        _text(row["user_occupation_text"]),
        _text(row["user_zip_code"]),
      )
  if films > len(titles):
    raise UserError(f"data.arms={films}: the data set has {len(titles)} films")
  times = collections.Counter(film for _, film, _ in given)
  top = sorted(titles, key=lambda film: (-times[film], film))[:films]
  order = np.random.RandomState(seed).permutation(np.asarray(sorted(told))).tolist()
  row_of, column_of = ({x: i for i, x in enumerate(those)} for those in (order, top))
  table = np.zeros((len(order), films))
  for user, film, stars in given:
    if film in column_of:
      table[row_of[user], column_of[film]] = stars
  return Ratings(table, tuple(titles[f] for f in top), tuple(told[u] for u in order))


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)


def _title(text: str) -> str:
  """The article before the title, where MovieLens has it behind."""
  name, year, rest = text.partition(" (")
  for article in ("The", "A", "An"):
    if name.endswith(f", {article}"):
      name = f"{article} {name.removesuffix(f', {article}')}"
  return name + year + rest


# ---- synthetic -----------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
  return tuple(text.split())


# Titles of our own, of one token each after a space for SmolLM2.
TITLES = _words(
  "Harbor Falcon Winter Garden Mirror Thunder Canyon Ocean Signal Silver River Castle Desert "
  "Shadow Summit Island Forest Copper Eagle Valley Tower Crystal Dragon Storm Glacier Raven "
  "Rocket Comet Bridge Temple"
)
JOBS = _words("writer teacher doctor farmer lawyer student artist engineer")


def synthetic(
  films: int, *, users: int = 400, rank: int = 4, missing: float = 0.3, seed: int = 0
) -> Ratings:
  """Ratings that stand for MovieLens where that is not to be had; a generator of our own:

    R_ij = round(3 + q_j + 1.5 p_i . v_j / sqrt(rank)) cut to 1..5, then 0 with chance `missing`

  v_j ~ N(0, I), q_j ~ N(0, 0.5^2), and p_i ~ N(m_i, I) / sqrt(2), where m_i is the sum of a vector
  for the age group, one for the gender and one for the job, each N(0, I / 3): what is told of a
  user says about half of their taste. Places say nothing. UserError for more films than titles.
  """
  if not 1 <= films <= len(TITLES):
    raise UserError(f"data.arms={films}: the synthetic ratings are of 1 to {len(TITLES)} films")
  rng = np.random.default_rng(seed)
  kinds = (len(AGES), 2, len(JOBS))
  member = [rng.integers(0, n, users) for n in kinds]
  mean = sum(rng.normal(size=(n, rank))[m] for n, m in zip(kinds, member, strict=True)) / 3**0.5
  taste = (mean + rng.normal(size=(users, rank))) / 2**0.5
  film, quality = rng.normal(size=(len(TITLES), rank)), rng.normal(0, 0.5, len(TITLES))
  full = np.clip(np.rint(3 + quality + 1.5 * taste @ film.T / rank**0.5), 1, 5)
  table = np.where(rng.uniform(size=full.shape) < missing, 0, full)
  place = rng.integers(10_000, 100_000, users)
  return Ratings(
    table=table[:, :films],
    titles=TITLES[:films],
    users=tuple(
      User(list(AGES)[a], bool(m), JOBS[j], str(p))
      for a, m, j, p in zip(*member, place, strict=True)
    ),
  )
