import numpy as np
import pytest
import token_worlds as tw


def cells_of(prompt, size):
  """The coloured cells, as a set of (x, y)."""
  rows = [prompt[size * y : size * (y + 1)] for y in range(size)]
  target, mark = prompt[size**2 :]
  assert mark == "?"
  return {(x, y) for y in range(size) for x in range(size) if rows[y][x] == target}


def point(size, points):
  def verdict(prompt, written):
    box = cells_of(prompt, size)
    body, stopped = tw.before_stop(written)
    form = stopped and len(body) in range(2, 2 * points + 1, 2)
    form = form and all(word.isdigit() for word in body)
    if not form:
      return 0, False, [0, 0, 0, 0, 0]
    hits = [(int(x), int(y)) in box for x, y in zip(body[::2], body[1::2], strict=True)]
    rank = hits.index(True) + 1 if any(hits) else 0
    return hits[0], hits[0], [hits[0], any(hits), rank, len(hits), 1]

  return verdict


def box(size):
  def verdict(prompt, written):
    true = cells_of(prompt, size)
    body, stopped = tw.before_stop(written)
    if not (stopped and len(body) == 4 and all(word.isdigit() for word in body)):
      return 0, False, [0, 0, 0]
    x1, y1, x2, y2 = map(int, body)
    said = {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}
    if x1 > x2 or y1 > y2:
      return 0, False, [0, 0, 0]
    iou = len(said & true) / len(said | true)
    return iou, said == true, [iou >= 0.5, iou, 1]

  return verdict


def test_verdicts_on_points_are_those_of_python_sets():
  tw.agree(tw.get("grounding", points=2), point(5, 2))


def test_verdicts_on_boxes_are_those_of_python_sets():
  world = tw.get("grounding", task="box", largest=4)
  tw.agree(world, box(5))
  made, _ = tw.problems(world, tw.ROWS)
  corners = np.random.default_rng(0).integers(2, 7, (tw.ROWS, 5)).astype(np.int32)
  corners[:, 4] = 1
  played = tw.play(world, made, corners)
  tw.compare(world, box(5), made, played)
  iou = played.verdict.parts[:, 1]
  assert np.sum((iou > 0) & (iou < 1)) > 50


def test_chance_is_the_share_over_all_answers():
  world = tw.get("grounding", size=2, colours=2, points=2)
  mean = 0.0
  for image, share in (("BABB", 1 / 4), ("AABB", 1 / 2), ("AAAA", 1 / 4)):  # sides of 1 or 2
    right = lambda written, image=image: point(2, 2)([*image, "A", "?"], written)[1]
    mean += share * tw.exact_chance(world, right)
  assert mean == pytest.approx(world.chance, rel=1e-9)


def test_chance_of_a_box_is_that_of_one_answer():
  world = tw.get("grounding", task="box", largest=4)
  assert world.chance == pytest.approx(world.vocab**-5.0)


def test_boxes_stand_everywhere_they_fit():
  world = tw.get("grounding", task="box", largest=4)
  data = tw.problems(world, tw.ROWS)[0].data
  area = (data[:, 2] - data[:, 0] + 1) * (data[:, 3] - data[:, 1] + 1)
  assert abs(np.mean(area) - 2.5**2) < 4 * np.std(area) / tw.ROWS**0.5
  for axis in (0, 1):
    sides = {(a, b) for a, b in data[:, [axis, axis + 2]]}
    assert sides == {(a, b) for a in range(5) for b in range(a, min(a + 4, 5))}


def test_unknown_tasks_are_named():
  with pytest.raises(ValueError, match="known: box, point"):
    tw.get("grounding", task="circle")
