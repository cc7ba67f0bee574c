"""Files of tensors are read whole or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from l2l_runner.tensors import TensorFileError, UnsafeFileError, is_plain, read_tensors


def test_a_flipped_bit_is_never_read(tmp_path: Path) -> None:
    path, weights = tmp_path / "weights.pt", {"weight": torch.randn(200, generator=torch.Generator().manual_seed(0))}
    torch.save(weights, path)
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for place in draw.sample(range(len(whole)), 200):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            read = read_tensors(path)
        except TensorFileError:
            refused += 1
        else:  # the bit was in what ZIP archives have no use for
            assert torch.equal(read["weight"], weights["weight"])
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root:/root:/bin/bash\n", b"PK\x03\x04 half of an archive"])
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(TensorFileError):
        read_tensors(path)
    with pytest.raises(TensorFileError):
        read_tensors(tmp_path / "absent")


def test_objects_are_not_restored(tmp_path: Path) -> None:
    torch.save({"path": Path()}, tmp_path / "object.pt")
    with pytest.raises(UnsafeFileError):
        read_tensors(tmp_path / "object.pt")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), True),
        (torch.zeros(2, dtype=torch.int64), False),
        (torch.zeros(2, dtype=torch.complex64), False),
        (torch.zeros(2, 2).to_sparse(), False),
        (torch.zeros(2, device="meta"), False),
        ([0.0], False),
    ],
)
def test_dense_floating_point_tensors_are_plain(value: object, plain: bool) -> None:
    assert is_plain(value) is plain
