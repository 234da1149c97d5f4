"""Learning from one's own reading: the twin in writing, and what the spoken question is to take from it."""
import random
from dataclasses import replace

import pytest
import torch

from made import beeper, tiny
from omni_lite.data.interleave import chat_row
from omni_lite.data.speech import build_speech
from omni_lite.data.tasks import Material, bind
from omni_lite.data.world import FAMILIES, World
from omni_lite.omni.rows import collate
from omni_lite.train.muon import deal
from omni_lite.train.trainer import LMObjective

WORLD = World('small')

@pytest.fixture(scope='module')
def parts(): return tiny()

def rows(proc, heard=True):
    "A question, heard as noise or read, with its twin in writing."
    read = chat_row(proc.builder, lambda b: b.text('what is red?'), 'the bus.')
    ask = (torch.randint(0, 16, (9, 8)), None) if heard else lambda b: b.text('what is red?')
    return replace(chat_row(proc.builder, ask, 'the bus.'), twin=read), read

def test_a_row_as_its_own_twin_has_nothing_to_learn(parts):
    m, proc = parts
    out = LMObjective(m)(collate([rows(proc, False)[0]]))
    assert out['distil'].item() == pytest.approx(0, abs=1e-6)

def test_what_is_heard_learns_from_what_is_read_and_not_the_other_way(parts):
    m, proc = parts
    row, read = rows(proc)
    batch = collate([read, row])  # one row with a twin, one without
    idx, twin = batch['twin']
    assert idx.tolist() == [1] and torch.equal(twin['labels'][0], read.labels)
    m.zero_grad(); LMObjective(m)(batch)['distil'].backward()
    assert m.audio_embed.tables[0].weight.grad.abs().sum() > 0
    words = set(read.ids.tolist()) - set(row.ids.tolist())  # read by the twin alone
    grad = m.llm.get_input_embeddings().weight.grad
    assert words and all(grad[w].abs().sum() == 0 for w in words)

def test_learning_closes_the_distance(parts):
    m, proc = parts
    row, _ = rows(proc); ask = LMObjective(m)
    opt = torch.optim.Adam(m.audio_embed.parameters(), 1e-2); first = None
    for _ in range(30):
        loss = ask(collate([row]))['distil']; first = first or loss.item()
        opt.zero_grad(); loss.backward(); opt.step()
    assert loss.item() < first / 3

def test_without_twins_there_is_no_such_term(parts):
    m, proc = parts
    batch = collate([rows(proc)[1]])
    assert 'twin' not in batch and 'distil' not in LMObjective(m)(batch)

def test_the_task_gives_the_same_question_in_writing(parts, tmp_path):
    m, proc = parts
    family = next(f for f in WORLD.families if FAMILIES[f].sense == 'text'); s = WORLD.sample(family, 'train', 3)
    lines = [dict(text=s.question, voice='heart', kind='question', split='train', family=family, sample_seed=3)]
    store = build_speech(lines, tmp_path, 0, False, speaker=beeper)
    codes = torch.randint(0, 16, (sum(r['n_frames12'] for r in store.rows), 8)).numpy()
    tasks = bind(Material(WORLD, proc, store, codes))
    row, plain = tasks['spoken_taught'](random.Random(0)), tasks['spoken'](random.Random(0))
    assert plain.twin is None and torch.equal(plain.ids, row.ids)
    said = lambda r: r.labels[r.labels >= 0].tolist()
    assert said(row) == said(row.twin) and (row.codes >= 0).any() and not (row.twin.codes >= 0).any()
    assert s.question in proc.tok.decode(row.twin.ids)

@pytest.mark.parametrize('hands', [1, 2, 3, 8])
def test_matrices_are_dealt_out_once_and_evenly(hands):
    ps = [torch.zeros(m, n) for m, n in [(256, 256)]*6 + [(768, 256)]*3 + [(128, 128)]*5]
    out, work = deal(ps, hands), lambda h: sum(p.numel() for p in h)
    assert sorted(id(p) for h in out for p in h) == sorted(map(id, ps)) and len(out) == hands
    assert max(map(work, out)) - min(map(work, out)) <= 768*256
