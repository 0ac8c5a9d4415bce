"""Blocked search equals a whole matrix, faiss, and a count by hand; ties and owners do not depend on blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_inversion.measure.neighbours import NearestSearch, Neighbours, nearest_queries

STREAM = torch.Generator().manual_seed(0)
QUERIES, POOL = torch.randn(17, 24, generator=STREAM), torch.randn(230, 24, generator=STREAM)


def search(queries: Tensor, pool: Tensor, k: int, block: int) -> Neighbours:
    found = NearestSearch(queries, k)
    for start in range(0, len(pool), block):
        rows = torch.arange(start, min(start + block, len(pool)))
        found.add(pool[rows], rows)
    return found.found()


def whole_matrix(queries: Tensor, pool: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Another way: every cosine in float64, rows sorted by (-cosine, row)."""
    a, b = queries.double().numpy(), pool.double().numpy()
    cosines = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@pytest.mark.parametrize("block", [1, 7, 64, 230])
def test_equals_the_whole_matrix_for_any_block(block: int) -> None:
    found = search(QUERIES, POOL, 12, block)
    rows, cosines = whole_matrix(QUERIES, POOL, 12)
    assert np.array_equal(found.rows.numpy(), rows)
    np.testing.assert_allclose(found.similarities.numpy(), cosines, atol=1e-11, rtol=0)


def test_equals_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    unit = [np.ascontiguousarray((x / x.norm(dim=1, keepdim=True)).numpy()) for x in (QUERIES, POOL)]
    index = faiss.IndexFlatIP(POOL.shape[1])
    index.add(unit[1])
    similarities, rows = index.search(unit[0], 12)
    found = search(QUERIES, POOL, 12, 50)
    assert np.array_equal(found.rows.numpy(), rows)
    np.testing.assert_allclose(found.similarities.numpy(), similarities, atol=1e-6, rtol=0)


def test_memory_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is kept or multiplied is as long as what was searched."""
    widest = 0
    sort = Tensor.sort

    def watched(self: Tensor, *args: object, **kwargs: object) -> object:
        nonlocal widest
        widest = max(widest, self.shape[-1])
        return sort(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Tensor, "sort", watched)
    found = search(QUERIES, POOL, 5, 16)
    assert widest == 5 + 16 and found.rows.shape == (17, 5)


def test_equal_ones_come_in_the_order_of_their_rows() -> None:
    pool = torch.cat([POOL[:3], POOL[:3] * 2, POOL[:3], torch.zeros(1, 24)])  # a cosine knows no length
    for block in (1, 4, 10):
        found = search(POOL[1:2], pool, 4, block)
        assert found.rows[0, :3].tolist() == [1, 4, 7]
    assert search(POOL[1:2], pool, 99, 4).similarities.shape == (1, 10), "no more than there are"


def test_rows_that_do_not_ascend_are_refused() -> None:
    found = NearestSearch(QUERIES, 2)
    found.add(POOL[:2], torch.tensor([3, 5]))
    for rows in ([5, 6], [9, 8]):
        with pytest.raises(ValueError, match="ascend"):
            found.add(POOL[:2], torch.tensor(rows))
    with pytest.raises(ValueError, match="k=0"):
        NearestSearch(QUERIES, 0)


def test_each_image_goes_once_to_the_nearest_query_that_has_it() -> None:
    # Rows 10, 11, 12; query 0 has 11 farther than query 1 does; 12 is equally near to both.
    found = Neighbours(
        torch.tensor([[10, 11, 12], [11, 12, 10]]),
        torch.tensor([[0.9, 0.5, 0.4], [0.8, 0.4, 0.3]], dtype=torch.float64),
    )
    owners = [(one.row, one.query, one.rank, one.similarity) for one in nearest_queries(found, 3)]
    assert owners == [(10, 0, 0, 0.9), (11, 1, 0, 0.8), (12, 0, 2, 0.4)]
    assert [(one.row, one.query) for one in nearest_queries(found, 1)] == [(10, 0), (11, 1)]


@pytest.mark.parametrize("k", [1, 3, 12])
def test_owners_equal_a_loop_over_all_pairs(k: int) -> None:
    found = search(QUERIES, POOL, 12, 40)
    best: dict[int, tuple[float, int, int]] = {}
    for query in range(len(QUERIES)):
        for rank in range(k):
            row, entry = int(found.rows[query, rank]), (-float(found.similarities[query, rank]), query, rank)
            best[row] = min(best.get(row, entry), entry)
    wanted = [(row, query, rank, -minus) for row, (minus, query, rank) in sorted(best.items())]
    assert [(one.row, one.query, one.rank, one.similarity) for one in nearest_queries(found, k)] == wanted
