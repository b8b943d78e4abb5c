import numpy as np
import pytest

from mmfl_fast.data import from_arrays, presence


def test_shares_of_each_kind_of_rows():
    held = np.array([[1, 1], [0, 1], [1, 0], [1, 1], [0, 1]], dtype=bool)
    split = ["train", "train", "test", "train", "train"]
    x = np.ones((5, 2))
    fed = from_arrays({"a": x, "b": x}, [0, 1, 0, 1, 0], ["p", "p", "p", "q", "q"], split, present=held)
    first, second = fed.clients
    assert presence(first) == {"a": 0.5, "b": 1.0}
    assert presence(first, "test") == {"a": 1.0, "b": 0.0}
    assert presence(second, "train") == {"a": 0.5, "b": 1.0}
    assert presence(second, "test") == {}
    with pytest.raises(ValueError, match="unknown part 'val'"):
        presence(first, "val")
