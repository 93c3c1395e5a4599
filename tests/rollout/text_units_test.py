"""Units of a text end with the token that completes the cut, however tokens and text divide."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from grpo_jax.rollout import text_units


def naive(texts, cut, units):
  """The unit of a token: how often the cut was completed before its first character."""
  out, before = [], ""
  for text in texts:
    done, at = 0, 0
    while (at := before.find(cut, at)) >= 0:
      done, at = done + 1, at + len(cut)
    out.append(min(done, units - 1))
    before += text
  return out


@given(
  st.lists(st.text("ab,\n ", max_size=4), max_size=12),
  st.sampled_from(["\n", ", ", "aa"]),
  st.integers(1, 5),
)
def test_the_unit_of_a_token_counts_the_cuts_completed_before_it(texts, cut, units):
  found = text_units.units_of(texts, cut, units)
  assert found.tolist() == naive(texts, cut, units)
  assert found.dtype == np.int32


def test_a_cut_that_two_tokens_complete_ends_with_the_second():
  assert text_units.units_of(["a", ",", " b", ", ", "c"], ", ", 9).tolist() == [0, 0, 0, 1, 2]
