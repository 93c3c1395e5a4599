"""Ratings: MovieLens 1M as tensorflow-datasets stores it, and the matrix of our own."""

import shutil

import numpy as np
import pytest
from tensorflow_datasets.structured import movielens as official

from grpo_jax.data import movielens, tfds_source
from grpo_jax.data.problem import Problem
from grpo_jax.errors import UserError

FILMS = {"7": "Quiet Harbour, The (1990)", "12": "Paper Kite, A (1987)", "3": "Salt, Sand (1999)",
         "21": "Low Tide (1971)"}  # fmt: skip
JOBS = ("farmer", "writer", "K-12 student")
RNG = np.random.default_rng(0)
# user, film, stars: users "1".."12", some of them twice as keen.
SEEN = [
  (str(u), film, int(RNG.integers(1, 6)))
  for u in range(1, 13)
  for film, chance in zip(FILMS, (0.9, 0.6, 0.6, 0.3), strict=True)
  if RNG.uniform() < chance
]


def rows(self, dir_path=None):
  for i, (user, film, stars) in enumerate(SEEN):
    n = int(user)
    yield i, {
      "movie_id": film, "movie_title": FILMS[film], "movie_genres": ["Drama"], "user_id": user,
      "user_rating": stars, "timestamp": i, "user_gender": n % 2 == 1,
      "bucketized_user_age": 18 if n < 6 else 56, "user_occupation_label": "farmer",
      "user_occupation_text": JOBS[n % 3], "user_zip_code": f"{n:05d}",
    }  # fmt: skip


def written(data_dir, file_format) -> str:
  """By the official builder, features and all, with rows of our own in place of the download."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      official.Movielens, "_split_generators", lambda self, _: {"train": self._generate_examples()}
    )
    patch.setattr(official.Movielens, "_generate_examples", rows)
    return tfds_source.prepared(
      official.Movielens(config="1m-ratings", data_dir=data_dir, file_format=file_format)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return written(tmp_path_factory.mktemp("tfds"), "array_record")


def test_a_prepared_folder_becomes_the_matrix_of_its_most_rated_films(folder):
  found = movielens.load("movielens", 3, path=folder, seed=4)
  times = {film: sum(f == film for _, f, _ in SEEN) for film in FILMS}
  top = sorted(FILMS, key=lambda f: (-times[f], int(f)))[:3]
  names = {"7": "The Quiet Harbour (1990)", "12": "A Paper Kite (1987)", "3": "Salt, Sand (1999)",
           "21": "Low Tide (1971)"}  # fmt: skip
  assert found.titles == tuple(names[f] for f in top)
  people = [int(user.place) for user in found.users]
  assert sorted(people) == sorted({int(u) for u, _, _ in SEEN}) != people
  stars = {(int(u), f): s for u, f, s in SEEN}
  want = [[stars.get((n, f), 0) for f in top] for n in people]
  np.testing.assert_array_equal(found.table, want)
  assert 0 in found.table and set(found.table.ravel()) <= set(range(6))
  for user, n in zip(found.users, people, strict=True):
    assert user == (18 if n < 6 else 56, n % 2 == 1, JOBS[n % 3], f"{n:05d}")
  one = next(u for u in found.users if u.place == "00002")
  assert str(one) == "woman, 18-24, K-12 student, 00002"


def test_the_order_of_the_users_is_that_of_the_seed_and_nothing_else_is(folder):
  first, again, other = (movielens.read(folder, 2, seed=s) for s in (0, 0, 1))
  np.testing.assert_array_equal(first.table, again.table)
  assert first.users == again.users != other.users
  pairs = lambda r: sorted(zip(r.users, map(tuple, r.table.tolist()), strict=True))
  assert pairs(first) == pairs(other) and first.titles == other.titles


def test_the_prepared_folder_of_a_data_dir_is_found_without_a_download(folder, monkeypatch):
  def none(self, **kwargs):
    raise AssertionError("downloads")

  monkeypatch.setattr(official.Movielens, "download_and_prepare", none)
  root = str(folder).removesuffix(f"/{movielens.NAME}/0.1.1")
  assert movielens.prepare(root) == str(folder)


def test_what_cannot_be_had_is_one_line_that_says_what_to_do(folder, tmp_path, monkeypatch):
  def offline(self, **kwargs):
    raise ConnectionError("no route\nto the host")

  monkeypatch.setattr(official.Movielens, "download_and_prepare", offline)
  with pytest.raises(UserError, match=r"no route to the host\); give .* data\.path, or") as failed:
    movielens.prepare(str(tmp_path))
  assert "\n" not in str(failed.value) and failed.value.__cause__ is not None
  with pytest.raises(UserError, match="no prepared tfds data set"):
    movielens.load("movielens", 3, path=str(tmp_path))
  with pytest.raises(UserError, match=r"data\.arms=5: the data set has 4 films"):
    movielens.read(folder, 5)
  with pytest.raises(UserError, match=r"data\.source: unknown name 'movilens'; did you mean"):
    movielens.load("movilens", 3)
  other = tfds_source.write(str(tmp_path / "other"), {"train": [Problem(0, "p", "q", "a", {})]})
  with pytest.raises(UserError, match="has no movie_id; give a folder of movielens/1m-ratings"):
    movielens.read(other, 3)


def test_a_folder_in_another_format_is_refused_with_the_format_to_give(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / f"{movielens.NAME}/0.1.1")
  info = copy / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  assert movielens.prepare(str(tmp_path)) == str(copy)
  with pytest.raises(UserError, match="not stored as array_record; prepare it with file_format="):
    movielens.read(str(copy), 2)


# ---- synthetic -----------------------------------------------------------------------------------


def test_synthetic_ratings_are_whole_stars_a_share_of_them_missing_and_those_of_the_seed():
  found, again, other = (movielens.synthetic(30, users=600, seed=s) for s in (0, 0, 1))
  assert set(found.table.ravel()) == {0, 1, 2, 3, 4, 5} and found.table.shape == (600, 30)
  assert (found.table == 0).mean() == pytest.approx(0.3, abs=0.02)
  np.testing.assert_array_equal(found.table, again.table)
  assert found.users == again.users and (found.table != other.table).any()
  few = movielens.synthetic(10, users=600)
  np.testing.assert_array_equal(few.table, found.table[:, :10])
  assert few.users == found.users and few.titles == found.titles[:10]


def test_synthetic_ratings_are_nearly_of_low_rank_and_what_is_told_of_users_predicts_them():
  found = movielens.synthetic(30, users=3000, missing=0.0)
  centred = found.table - found.table.mean(axis=0)
  power = np.linalg.svd(centred, compute_uv=False) ** 2
  assert power[:4].sum() > 0.75 * power.sum() and power[3] > 4 * power[4]
  told = np.stack([[u.age == a for u in found.users] for a in movielens.AGES], axis=1)
  job = np.stack([[u.job == j for u in found.users] for j in movielens.JOBS], axis=1)
  man = np.asarray([[u.man] for u in found.users])
  x = np.concatenate([told, job, man], axis=1).astype(float)
  x -= x.mean(axis=0)
  left = centred - x @ np.linalg.lstsq(x, centred, rcond=None)[0]
  assert 0.2 < 1 - (left**2).sum() / power.sum() < 0.6


def test_titles_are_of_one_word_and_no_more_films_than_they_are():
  assert len(set(movielens.TITLES)) == 30 and all(t.isalpha() for t in movielens.TITLES)
  with pytest.raises(UserError, match=r"data\.arms=31: the synthetic ratings are of 1 to 30"):
    movielens.synthetic(31)
