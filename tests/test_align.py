"""Alignment against every possible path, against torchaudio where it can, and the cuts that follow from it."""
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from omni_lite.data import align as A

def spelled(path, blank=0):
    "What CTC reads off a path: repeats joined, blanks gone."
    return [s for s, before in zip(path, [None, *path]) if s != before and s != blank]

def random_case(seed, T, N, C=4):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, C, generator=g).log_softmax(-1), torch.randint(1, C, (N,), generator=g)

def room(targets): return len(targets) + int((targets[1:] == targets[:-1]).sum())

@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4))
def test_the_best_of_all_paths(seed, T, N):
    logp, targets = random_case(seed, T, N)
    paths = [p for p in product(range(4), repeat=T) if spelled(p) == targets.tolist()]
    if T < room(targets):
        assert not paths
        with pytest.raises(ValueError, match='too few'): A.viterbi(logp, targets)
        return
    score = lambda p: logp[torch.arange(T), torch.as_tensor(p)].sum()
    best = A.viterbi(logp, targets)
    assert spelled(best.tolist()) == targets.tolist()
    torch.testing.assert_close(score(best), max(score(p) for p in paths))

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(10, 60), st.integers(1, 20), st.integers(0, 3))
def test_no_path_beats_the_sum_and_spans_spell(seed, T, N, blank):
    logp, targets = random_case(seed, T, N)
    targets = targets - (targets <= blank).long()  # any id may be the blank
    if T < room(targets): return
    path = A.viterbi(logp, targets, blank)
    one = logp[torch.arange(T), path].sum()
    every = -torch.nn.functional.ctc_loss(logp[:, None], targets[None], (T,), (N,), blank, 'sum')
    assert one <= every + 1e-3
    found = A.spans(path, blank)
    assert len(found) == N and [int(path[a]) for a, _ in found] == targets.tolist()
    assert all(a < b <= c for (a, b), (c, _) in zip(found, [*found[1:], (T, T)]))
    assert A.price(logp, targets, blank) >= -1e-6

def test_equals_torchaudio():
    if not A.compiled(): pytest.skip('this torchaudio was built without its aligner')
    for seed in range(20):
        logp, targets = random_case(seed, 50, 1 + seed, 12)
        assert torch.equal(A.ctc_align(logp, targets), A.viterbi(logp, targets))

def test_torchaudio_is_asked_where_it_answers(monkeypatch):
    "The call that a build with the aligner gets: batch of one, int32 symbols, its tokens given back."
    logp, targets = random_case(0, 12, 3); seen = []
    def theirs(log_probs, targets, blank=0):
        seen.append((log_probs.shape, targets.dtype, blank))
        return A.viterbi(log_probs[0], targets[0].long(), blank)[None].int(), log_probs[..., 0]
    monkeypatch.setattr(A.AF, 'forced_align', theirs); A.compiled.cache_clear()
    try:
        assert A.compiled() and torch.equal(A.ctc_align(logp, targets), A.viterbi(logp, targets))
        assert seen[-1] == ((1, 12, 4), torch.int32, 0)
        with pytest.raises(ValueError, match='too few'): A.ctc_align(logp[:2], targets)
    finally: A.compiled.cache_clear()

def test_half_precision_and_batches_of_frames():
    logp, targets = random_case(3, 40, 9)
    assert A.spans(A.viterbi(logp.double(), targets)) == A.spans(A.viterbi(logp, targets))

@pytest.mark.parametrize('targets, says', [([], 'nothing to align'), ([0], 'the blank or outside'), ([4], 'outside the 4'),
                                           ([-1], 'outside')])
def test_refused(targets, says):
    with pytest.raises(ValueError, match=says): A.viterbi(torch.zeros(5, 4), torch.tensor(targets, dtype=torch.long))

def test_words_and_their_places():
    logp = torch.full((8, 4), -9.); path = [0, 1, 2, 2, 0, 0, 3, 0]
    for t, c in enumerate(path): logp[t, c] = 0.
    assert A.align_words(logp, [('ab', [1, 2]), ('c', [3])], rate=10.) == [('ab', .1, .4), ('c', .6, .7)]

# ---- cuts

WORDS = st.lists(st.from_regex(r'[a-z]{1,6}[.,;?!]?', fullmatch=True), min_size=1, max_size=14)

@settings(max_examples=100, deadline=None)
@given(WORDS, st.integers(1, 4), st.data())
def test_segments_lose_nothing(words, shortest, data):
    text = ' '.join(words)
    gaps = data.draw(st.lists(st.sampled_from([0., .1, .4]), min_size=len(words), max_size=len(words)))
    marks, t = [], 0.
    for w, g in zip(words, gaps): marks.append((w, t + g, t + g + .2)); t += g + .2
    for m in (None, marks):
        parts = A.segments(text, m, shortest=shortest)
        assert ' '.join(p for p, _, _ in parts) == text
        assert len(parts) == 1 or all(len(p.split()) >= shortest for p, _, _ in parts)
        assert all(a[2] == b[1] for a, b in zip(parts, parts[1:])) and parts[-1][2] is None
    edges = [a for _, a, _ in parts]
    assert edges[0] == 0 and edges == sorted(edges)
    inside = lambda e: any(a + 1e-9 < e < b - 1e-9 for _, a, b in marks)
    assert not any(inside(e) for e in edges)  # never within a word

@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.lists(st.floats(0, 4), min_size=0, max_size=6))
def test_codes_are_cut_without_loss(n, starts):
    parts = [(f'w{i}', a, None) for i, a in enumerate([0., *sorted(starts)])]
    codes = torch.arange(n)[:, None].expand(n, 3)
    if len(parts) > n:
        with pytest.raises(ValueError, match='cannot be cut'): A.cut_codes((codes, None), parts)
        return
    pairs = A.cut_codes((codes, list(range(n))), parts)
    assert torch.equal(torch.cat([c for _, (c, _) in pairs]), codes)
    assert [k for _, (_, al) in pairs for k in al] == list(range(n))
    assert all(len(c) for _, (c, _) in pairs)

def test_pause_punctuation_and_scripts():
    marks = [(w, a, a + .3) for w, a in zip('abcd', (0, .3, 1.1, 1.4))]
    assert [p for p, _, _ in A.segments('a b c d', marks)] == ['a b', 'c d']
    assert [p for p, _, _ in A.segments('a b c d', marks, pause=.9)] == ['a b c d']
    assert [p for p, _, _ in A.segments('我来了。你呢？好', shortest=1)] == ['我来了。', '你呢？', '好']
    assert [p for p, _, _ in A.segments('well - yes, "it is." so it goes')] == ['well - yes,', '"it is."', 'so it goes']

def test_in_turn():
    pairs = [('a', 1), ('b', 2), ('c', 3)]
    assert A.in_turn(pairs) == [1, 'b', 3] and A.in_turn(pairs, False) == ['a', 2, 'c']
