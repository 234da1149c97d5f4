"""Shares by tokens over any window, packing without leaks, and loaders that go on exactly."""
import pickle, random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from omni_lite.config import preset
from omni_lite.data.interleave import asr_row, itts_row, text_row, tts_row
from omni_lite.data.mixture import Ahead, Batches, Mixture, Packed, chain, collate, collate_packed, pack
from omni_lite.data.tasks import Material, bind
from omni_lite.data.world import World
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.omni.rows import Row
from omni_lite.text import encode_text, train_tokenizer

WORLD = World('small')

def columns(n):
    z = torch.ones(n, dtype=torch.long)
    return z, z, torch.full((n, 8), -1), torch.full((n, 8), -100), z, z == 0

def task(low, high):
    made = {n: columns(n) for n in range(low, high + 1)}
    return lambda rng: Row(*made[rng.randint(low, high)])

TASKS = dict(text=task(5, 40), picture=task(30, 120), speech=task(60, 300), rare=task(200, 256))
SHARES = dict(text=.4, picture=.35, speech=.23, rare=.02)

def mixture(**kw): return Mixture(TASKS, SHARES, **kw)

def worst(rows, window=1_000_000):
    "The largest error of any share over any window of tokens, in shares of the whole."
    size, kind = np.array([len(r) for r in rows]), np.array([r.kind for r in rows])
    end = np.cumsum(size); begin = np.searchsorted(end, end - window); ok = end > window
    assert ok.sum() > 500
    def error(k):
        mine = np.cumsum(size*(kind == k))
        return np.abs((mine - mine[begin])[ok] / (end - end[begin])[ok] - SHARES[k]).max()
    return max(map(error, SHARES))

def order(data, tokens):
    "Rows as a loader gives them out."
    rows, total = [], 0
    while total < tokens:
        data.refill()
        rows += (new := [r for g in reversed(data.groups) for r in (g if isinstance(g, list) else [g])])
        total += sum(map(len, new))
    return rows

def test_shares_hold_over_any_window():
    mix, rows, total = mixture(), [], 0
    while total < 1_500_000: rows.append(mix.draw()); total += len(rows[-1])
    assert worst(rows) < .001

@pytest.mark.parametrize('make', [Batches, lambda m: Packed(m, 512, 4)])
def test_shares_hold_in_the_order_of_batches(make):
    assert worst(order(make(mixture()), 1_400_000)) < .004

def test_shares_hold_over_processes():
    "Rows of four processes in turn."
    mixes = [mixture(rank=r, world=4) for r in range(4)]
    rows = [m.draw() for _ in range(8000) for m in mixes]
    assert worst(rows) < .002

def test_no_task_runs_ahead():
    mix = mixture()
    for _ in range(3000):
        r = mix.draw(); total = sum(mix.count.values())
        assert mix.count[r.kind] - SHARES[r.kind]*total <= len(r) + 1

def test_order_over_processes_is_a_function_of_seed_and_rank():
    names = lambda **kw: [(r.kind, r.seed) for r in (m.draw() for m in [mixture(**kw)] for _ in range(50))]
    of = {r: names(rank=r, world=3) for r in range(3)}
    assert all(names(rank=r, world=3) == of[r] for r in range(3))
    seeds = [s for r in of for _, s in of[r]]
    assert len(set(seeds)) == len(seeds) and names(seed=1) != names()

@pytest.mark.parametrize('weights, why', [
    (dict(film=1.), 'no task named film: known are'), (dict(text=.5, picture=-.1), 'the share of picture is -0.1'),
    (dict(text=float('nan')), 'the share of text is nan'), (dict(text=float('inf')), 'the share of text is inf'),
    (dict(text=0, picture=0.), 'no task has a share above 0'), ({}, 'no task has a share above 0')])
def test_bad_shares(weights, why):
    with pytest.raises(ValueError, match=why) as e: Mixture(TASKS, weights)
    assert '\n' not in str(e.value)

def test_bad_processes():
    with pytest.raises(ValueError, match='rank 2 of 2 processes'): mixture(rank=2, world=2)
    with pytest.raises(ValueError, match='rank 0 of 1 and this is rank 1 of 2'):
        mixture(rank=1, world=2).load_state_dict(mixture().state_dict())

def test_a_state_without_ranks_is_of_one_process():
    a, b = mixture(), mixture(seed=4); s = a.state_dict(); del s['rank'], s['world']
    b.load_state_dict(s)
    assert [a.draw().seed for _ in range(5)] == [b.draw().seed for _ in range(5)]

def test_a_task_without_positions_is_refused():
    with pytest.raises(ValueError, match='empty gave a row without positions'):
        Mixture(dict(empty=lambda rng: Row(*columns(0))), dict(empty=1)).draw()

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 64), max_size=80))
def test_pack_keeps_every_row_once(sizes):
    groups = pack([Row(*columns(n)) for n in sizes], 64)
    full = sorted(sum(map(len, g)) for g in groups)
    assert sorted(len(r) for g in groups for r in g) == sorted(sizes) and max(full, default=0) <= 64
    assert len(full) < 2 or full[0] + full[1] > 64  # no two could share a row

def test_a_row_that_does_not_fit_is_named():
    only = Mixture(dict(rare=task(200, 256)), dict(rare=1))
    with pytest.raises(ValueError, match="kind 'rare' has 2.. positions and does not fit into 128"): next(Packed(only, 128))

@pytest.mark.parametrize('length', [512, 1024])
def test_fill_of_random_rows(length):
    bs = list(islice(Packed(mixture(), length, 4), 30))
    assert {b['input_ids'].shape for b in bs} == {(4, length)}
    assert sum((b['seq_ids'] >= 0).sum() for b in bs) / sum(b['seq_ids'].numel() for b in bs) >= .95

@pytest.fixture(scope='module')
def parts():
    torch.manual_seed(0); torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(WORLD.corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)))
    proc = OmniProcessor(tok, cfg)
    return OmniForCausalLM(cfg).eval(), proc, bind(Material(WORLD, proc))

@pytest.mark.parametrize('shares', [dict(corpus=.3, text=.4, turns=.3), dict(picture=.6, caption=.2, clip=.2),
    dict(owners=.6, colors=.4), dict(picture=.35, caption=.05, clip=.2, text=.15, turns=.15, corpus=.1)])
def test_fill_of_the_tasks(parts, shares):
    bs = list(islice(Packed(Mixture(parts[2], shares), pool=4), 8))
    assert sum((b['seq_ids'] >= 0).sum() for b in bs) / sum(b['seq_ids'].numel() for b in bs) >= .95

def test_nothing_is_lost_between_pools():
    "What was drawn was given out, but for what waits."
    data = Packed(mixture(), 512, 4, 3); bs = [next(data) for _ in range(12)]
    waits = sum(map(len, data.held)) + sum(len(r) for g in data.groups for r in g)
    assert sum((b['seq_ids'] >= 0).sum().item() for b in bs) + waits == sum(data.mix.count.values())
    assert waits and not data.groups

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if torch.is_tensor(a[k]))

@pytest.mark.parametrize('make', [lambda m: Batches(m, 1024, 3), lambda m: Packed(m, 300, 3, 2),
    lambda m: Ahead(Packed(m, 300, 3, 2)), lambda m: Ahead(Batches(m, 1024, 3), 4)], ids=['length', 'packed', 'ahead', 'ahead4'])
def test_resume_is_exact_after_any_batch(make):
    whole, part = make(mixture()), make(mixture()); truth = [next(whole) for _ in range(16)]
    for i in range(11):
        again = make(mixture(seed=77)); again.load_state_dict(pickle.loads(pickle.dumps(part.state_dict())))
        assert all(same(next(again), t) for t in truth[i:i + 5]), i
        assert same(next(part), truth[i])

def test_no_two_builders_share_a_row(parts):
    "A thread draws while another asks: half a row of the one must not end up in the other."
    proc = parts[1]; half = proc.builder.text('a cat')
    whole = proc.builder.text('a dog').done(); proc.apply_chat_template([dict(role='user', content='what is this?')])
    assert half.done().ids.tolist() == encode_text(proc.tok, 'a cat') != whole.ids.tolist()

def test_ahead_hands_errors_on():
    with pytest.raises(ValueError, match='does not fit into 128'): next(Ahead(Packed(mixture(), 128)))

def speech(n, seed): return torch.randint(0, 16, (n, 8), generator=torch.Generator().manual_seed(seed)), None

@pytest.fixture
def rows(parts):
    _, proc, tasks = parts; b, rng = proc.builder, random.Random(0)
    made = [tasks[k](rng) for k in ('turns', 'picture', 'text', 'caption', 'corpus')]
    return made + [text_row(b, 'a cat.'), tts_row(b, 'a cat.', speech(5, 0)), asr_row(b, speech(7, 1), 'a dog.'),
                   itts_row(b, [('a cat', speech(4, 2)), ('a dog.', speech(6, 3))])]

def counts(row):
    real = (row.code_labels[1:] >= 0).all(-1) & (row.code_labels[1:, 0] < 16)
    return (row.labels[1:] >= 0).sum().item(), (row.code_labels[1:] >= 0).any(-1).sum().item(), real.sum().item(), \
        (row.align >= 0).sum().item()

def test_packed_losses_are_those_of_the_rows_alone(parts, rows):
    m = parts[0]; total = np.zeros(4); n = np.zeros(4)
    with torch.no_grad():
        for r in rows:
            out, c = m.losses(collate([r]), deep_share=1.), np.array(counts(r))
            deep = out['levels'][1:].mean().item() if 'levels' in out else 0
            level1 = out['levels'][0].item() if 'levels' in out else 0
            alone = [out['text'].item() if c[0] else 0, level1, deep, out['align'].item() if c[3] else 0]
            total += c*alone; n += c
        out = m.losses(collate_packed(pack(rows, 128), 128), deep_share=1.)
    text, level1, deep, align = total / n
    assert (n > 0).all() and abs(out['text'].item() - text) < 1e-5 and abs(out['align'].item() - align) < 1e-5
    assert abs(out['levels'][0].item() - level1) < 1e-5 and abs(out['levels'][1:].mean().item() - deep) < 1e-5

def test_no_sample_sees_another(parts, rows):
    "One sample after another is changed, picture and all; the logits of the others stay."
    m = parts[0]; length = sum(map(len, rows)) + 3
    def logits(rows):
        with torch.no_grad(): return m.llm.lm_head(m.hidden(collate_packed([rows], length)))[0]
    before, ends = logits(rows), np.cumsum([0, *map(len, rows)])
    for i, r in enumerate(rows):
        other = replace(r, ids=torch.where(r.labels >= 0, 7, r.ids), pictures=[(p + 1., g) for p, g in r.pictures])
        change = (logits([*rows[:i], other, *rows[i+1:]]) - before).abs().amax(-1)
        mine = torch.zeros(length, dtype=torch.bool); mine[ends[i]:ends[i+1]] = True
        assert change[mine].max() > 1e-3 and change[~mine].max() < 1e-6

def test_first_labels_are_erased(rows):
    "The last state of one sample is not asked for the first label of the next."
    text = replace(rows[5], labels=rows[5].ids.clone())  # a loss from the first position on
    codes = replace(rows[6], labels=rows[6].labels.clone(), code_labels=rows[6].code_labels.clone())
    codes.labels[0], codes.code_labels[0] = 3, 2
    group = [text, codes, text]; batch = collate_packed([group], 64)
    starts = [0, len(text), len(text) + len(codes)]
    assert (batch['labels'][0, starts] == -100).all() and (batch['code_labels'][0, starts] == -100).all()
    assert (batch['labels'] >= 0).sum() == sum(counts(r)[0] for r in group)
    assert (batch['code_labels'] >= 0).any(-1).sum() == sum(counts(r)[1] for r in group)
    assert text.labels[0] >= 0 and codes.code_labels[0, 0] == 2  # the rows themselves are left as they were

def test_padding_of_a_packed_row(rows):
    batch = collate_packed([[rows[5]], [rows[6], rows[5]]], 64)
    pad = batch['seq_ids'] < 0
    assert pad.sum() == 128 - 2*len(rows[5]) - len(rows[6])
    assert all((batch[k][pad] == v).all() for k, v in dict(labels=-100, codes=-1, code_labels=-100, align=-100).items())
    assert not batch['see'][pad].any()

def test_chain_keeps_pictures_and_sounds_in_order(rows):
    wav = [torch.randn(3000), torch.randn(1500)]
    a, b = replace(rows[1], sounds=[wav[0]]), replace(rows[3], sounds=[wav[1]])
    both = chain([a, b], 128)
    assert [p is q for (p, _), (q, _) in zip(both.pictures, a.pictures + b.pictures)] == [True, True]
    assert [x is y for x, y in zip(both.sounds, wav)] == [True, True]
