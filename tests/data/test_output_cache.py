"""Files of a teacher's outputs: what is stored, what is looked up, and what becomes of files that were changed."""

import hashlib

import pytest
import torch

from kdbench.data.output_cache import OutputCache


IMAGES, CROPS = 7, 4


@pytest.fixture
def outputs():
    """Logits in bfloat16 and embeddings in float32 for each crop of each image."""
    return torch.randn(CROPS, IMAGES, 3).bfloat16(), torch.randn(CROPS, IMAGES, 5)


@pytest.fixture
def make(tmp_path):
    def cache(kind=OutputCache):
        return kind(tmp_path / "outputs", IMAGES, CROPS, (torch.zeros(2, 3).bfloat16(), torch.zeros(2, 5)))

    return cache


def fill(cache, outputs):
    logits, embedding = outputs
    for crop in cache.missing():
        cache.put(crop, zip(logits[crop].split(3), embedding[crop].split(3), strict=True))


def test_rows_are_those_of_the_images_and_crops_asked_for(make, outputs):
    cache = make()
    fill(cache, outputs)
    assert [*cache.open()] == []
    crops, indices = torch.tensor([3, 0, 3, 1, 2]), torch.tensor([6, 0, 2, 2, 5])
    found = cache(crops, indices)
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32]
    assert [each.is_contiguous() for each in found] == [True, True]
    assert torch.equal(found[0], outputs[0][crops, indices])
    assert torch.equal(found[1], outputs[1][crops, indices])


def test_a_file_is_a_digest_and_each_images_logits_and_embedding_side_by_side(make, outputs, tmp_path):
    cache = make()
    fill(cache, outputs)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == [
        "0000.bin", "0001.bin", "0002.bin", "0003.bin",
    ]  # fmt: skip
    content = cache.file(2).read_bytes()
    rows = b"".join(
        logits.view(torch.uint8).numpy().tobytes() + embedding.numpy().tobytes()
        for logits, embedding in zip(outputs[0][2], outputs[1][2], strict=True)
    )
    assert content == hashlib.sha256(rows).digest() + rows


def test_it_is_complete_once_all_files_are_open_and_misses_what_is_neither_there_nor_open(make, outputs):
    cache = make()
    assert (cache.missing(), cache.complete) == ([0, 1, 2, 3], False)
    logits, embedding = outputs
    for crop in (1, 2):
        cache.put(crop, [(logits[crop], embedding[crop])])
    assert ([*cache.open()], cache.missing(), cache.complete) == ([], [0, 3], False)
    cache.file(1).unlink()
    assert cache.missing() == [0, 3]
    fill(cache, outputs)
    assert ([*cache.open()], cache.missing(), cache.complete) == ([], [], True)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:],
        lambda content: bytes([content[0] ^ 1]) + content[1:],
        lambda content: hashlib.sha256(content[32:] + b"\0").digest() + content[32:] + b"\0",
        lambda _: b"",
    ],
    ids=["cut", "longer", "a row changed", "its digest changed", "of another number of images", "empty"],
)
def test_a_file_that_does_not_hold_what_was_stored_is_quarantined(make, outputs, change):
    cache = make()
    fill(cache, outputs)
    path = cache.file(1)
    path.write_bytes(change(path.read_bytes()))
    (put_aside,) = cache.open()
    assert put_aside.is_file()
    assert put_aside != path
    assert (cache.missing(), cache.complete) == ([1], False)
    fill(cache, outputs)
    assert [*cache.open()] == []
    assert torch.equal(cache(torch.tensor([1] * 2), torch.tensor([6, 0]))[1], outputs[1][1, [6, 0]])


def test_a_batch_may_be_of_one_image_and_outputs_may_have_no_width(make, outputs, tmp_path):
    cache = make()
    fill(cache, outputs)
    assert [*cache.open()] == []
    assert torch.equal(cache(torch.tensor([1]), torch.tensor([6]))[1], outputs[1][1, 6:])
    without = OutputCache(tmp_path / "without", 2, 1, (torch.zeros(2, 3), torch.zeros(2, 0)))
    without.put(0, [(torch.eye(2, 3), torch.zeros(2, 0))])
    assert [*without.open()] == []
    logits, embedding = without(torch.tensor([0]), torch.tensor([1]))
    assert (logits.tolist(), embedding.shape) == ([[0.0, 1.0, 0.0]], (1, 0))
