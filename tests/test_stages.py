"""The tables of stages: what they freeze stays to the bit, what they train moves, and rows that cannot be meant are refused."""
import hashlib, random
from dataclasses import replace

import pytest
import torch

from omni_lite.config import preset
from omni_lite.data.interleave import asr_row, itts_row, text_row, tts_row
from omni_lite.data.mixture import collate
from omni_lite.data.tasks import Material, TASKS, bind
from omni_lite.data.world import World
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer
from omni_lite.train.stages import (GIVEN, LITE, NANO, PAPER, Stage, check_sets, freeze, limits, melt, recipe)
from omni_lite.train.trainer import StageRun, Workshop

WORLD = World('small')

@pytest.fixture(scope='module')
def parts():
    torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(WORLD.corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok), layers=3))
    return cfg, OmniProcessor(tok, cfg)

class Shop(Workshop):
    "A workshop whose batches are made up: all senses for the language model, noise for the codec."
    def data(self, stage):
        if stage.kind in ('lm', 'eye'): batch = self.words()
        else: batch = self.noise(25 if stage.kind == 'vocoder' else 12)
        while True: yield batch

    def words(self):
        tasks, b, rng, g = bind(Material(WORLD, self.proc)), self.proc.builder, random.Random(0), torch.Generator().manual_seed(0)
        speech = lambda n: (torch.randint(0, 16, (n, 8), generator=g), None)
        rows = [tasks[k](rng) for k in ('picture', 'clip', 'caption', 'owners')] + [text_row(b, 'a cat sees the red ball.')]
        return collate(rows + [asr_row(b, speech(9), 'a dog.'), tts_row(b, 'a cat.', speech(30)), itts_row(b, [('a dog.', speech(30))])])

    def noise(self, T, B=3):
        a, g = self.model.cfg.audio, torch.Generator().manual_seed(0); draw = lambda *s: torch.randn(*s, generator=g)
        return dict(mel16=draw(B, 8*T, a.n_mels), mel24=draw(B, 4*T, a.voice_mels), wav=draw(B, 1920*T) / 9, lengths=torch.full((B,), T),
                    phone=torch.randint(0, a.num_phones, (B, 4*T), generator=g, dtype=torch.uint8), f0=120 + draw(B, 4*T),
                    text=['a cat.', None, 'the dog sees a red ball.'])

def start(parts, stage):
    "A run of the real trainer, and a copy of every tensor before it."
    cfg, proc = parts; torch.manual_seed(1)
    m = OmniForCausalLM(cfg).eval()
    for b in m.tokenizer.rvq.books: b.started.fill_(True)
    run = StageRun(Shop(m, proc, WORLD, None, progress=False), replace(stage, share=1.), steps=8)
    return run, m, {k: v.clone() for k, v in m.state_dict().items()}

def wrong(m, was, stage, trains):
    "Tensors that moved though frozen, and trained ones that did not; averages and counts follow their module."
    weights, moved = dict(m.named_parameters()), {k for k, v in m.state_dict().items() if not torch.equal(v, was[k])}
    follow = {k for k in was if k not in weights and k.split('.')[0] in stage.trains}
    return sorted(moved - trains - follow), sorted(trains - moved)

def trained(m): return {n for n, p in m.named_parameters() if p.requires_grad}

@pytest.mark.parametrize('stage', NANO, ids=lambda s: s.name)
def test_frozen_weights_stay_to_the_bit_and_trained_ones_move(parts, stage):
    run, m, was = start(parts, stage); trains = trained(m)
    assert {n.split('.')[0] for n in trains} == set(stage.trains)
    if stage.blocks: assert {n.split('.')[3] for n in trains if '.layers.' in n} == {str(i) for i in range(stage.blocks)}
    for _ in range(8): run.one_step()
    assert wrong(m, was, stage, trains) == ([], [])

def test_the_check_sees_what_moves_and_what_does_not(parts):
    stage = NANO[1]; run, m, was = start(parts, stage); trains = trained(m)
    for _ in range(2): run.one_step()
    with torch.no_grad(): next(m.bridge.parameters()).view(-1)[:1].add_(1e-3); m.tokenizer.rvq.books[0].embed[0, 0] += 1e-3
    still = next(n for n in trains if 'q_proj' in n); m.get_parameter(still).data.copy_(was[still])
    first = next(n for n, _ in m.named_parameters() if n.startswith('bridge'))
    assert wrong(m, was, stage, trains) == (sorted([first, 'tokenizer.rvq.books.0.embed']), [still])

# ---- the paper's plan

FROZEN = {'1.1': {'llm', 'eye', 'audio_embed', 'head'}, '1.2': {'audio_embed', 'head'}, '2.1': {'llm', 'eye', 'bridge'}, '2.2': {'eye'},
          '3': {'eye'}, '4.1': {'head'}, '4.2': {'llm', 'eye', 'bridge'}} # reference section 2.1; the codec always

@pytest.mark.parametrize('name', ['lite', '7b'])
def test_rows_freeze_what_the_paper_freezes(name):
    with torch.device('meta'): m = OmniForCausalLM(preset(name))
    for s in recipe(name):
        melt(m, s)
        still = {k for k, part in m.named_children() if not any(p.requires_grad for p in part.parameters())}
        partly = {k for k, part in m.named_children() if len({p.requires_grad for p in part.parameters()}) > 1}
        codec = {'tokenizer', 'flow', 'vocoder'}
        assert not partly and (s.name not in FROZEN or still == FROZEN[s.name] | codec), s.name
        if s.name in codec: assert still == set(dict(m.named_children())) - {s.name}

def test_the_paper_gives_these_rates():
    rates = {s.name: s.trains for s in PAPER}
    assert rates['1.1'] == dict(bridge=1e-3) and rates['1.2'] == dict(llm=1e-5, bridge=1e-5, eye=1e-6)
    assert set(rates['2.1'].values()) == {1e-4} and set(rates['2.2'].values()) == {1e-5} and set(rates['3'].values()) == {4e-6}
    assert set(rates['4.1'].values()) == set(rates['4.2'].values()) == {None}, 'the report gives no rates for its fine-tuning'
    with pytest.raises(ValueError, match='no rate for llm'): freeze(torch.nn.ModuleDict(), PAPER[5])
    assert [s.context for s in PAPER] == [0, 0, 0, 0, 65536, 0, 0] and not any(s.batch for s in PAPER)
    assert all(s.source.startswith('reference') for s in PAPER)

def test_lite_has_the_papers_rates_and_ratios_and_starts_with_the_codec():
    paper = {s.name: s for s in PAPER}
    assert [s.name for s in LITE] == ['tokenizer', 'flow', 'vocoder', 'eye', *paper]
    for s in LITE[4:]:
        assert s.trains.keys() == paper[s.name].trains.keys()
        if s.name < '4': assert s.trains == paper[s.name].trains
        assert s.context <= preset('lite').llm.max_positions and 'ours' in s.source
    text = {s.name: sum(s.mixture.get(k, 0) for k in ('text', 'turns', 'corpus')) for s in LITE}
    assert text['1.2'] == pytest.approx(.4) and text['2.2'] == pytest.approx(.4)

def test_nano_is_what_it_was():
    "Seeds hang on the names, runs on the rest: a change here makes old runs impossible to repeat."
    rows = [(s.name, s.kind, s.trains, s.mixture, s.share, s.blocks) for s in NANO]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == '3c149d3fdec5acb6'
    assert [s.name for s in recipe('nano', True)] == [s.name for s in NANO if s.name not in GIVEN]
    assert recipe('tiny') == recipe('nano')

@pytest.mark.parametrize('name', ['tiny', 'nano', 'lite'])
@pytest.mark.parametrize('given', [False, True])
def test_shares_sum_to_one(name, given): assert sum(s.share for s in recipe(name, given)) == pytest.approx(1.)

def test_every_set_is_known():
    check_sets(NANO, TASKS); check_sets(LITE, TASKS)
    with pytest.raises(ValueError, match='stage x asks for jokes, which is no set here'):
        check_sets([*NANO, Stage('x', 'lm', dict(llm=1.), dict(jokes=1.))], TASKS)

# ---- rows that cannot be meant

@pytest.mark.parametrize('kw, says', [
    (dict(trains={}), 'stage x trains nothing'), (dict(kind='dance'), "has the objective 'dance'"), (dict(trains=dict(llm=0.)), 'above 0'),
    (dict(trains=dict(llm=float('nan'))), 'above 0'), (dict(mixture=dict(text=.5, say=.4)), 'sum to 0.9'),
    (dict(mixture=dict(text=1.5, say=-.5)), 'each is 0 or more'), (dict(share=.1, tokens=5.), 'two units'),
    (dict(steps=3, minutes=1.), 'two units'), (dict(minutes=-1.), 'below 0')])
def test_bad_rows(kw, says):
    with pytest.raises(ValueError, match=says): Stage(**(dict(name='x', kind='lm', trains=dict(llm=1e-3)) | kw))

def test_a_module_that_is_not_there(parts):
    with torch.device('meta'): m = OmniForCausalLM(parts[0])
    before = [p.requires_grad for p in m.parameters()]
    with pytest.raises(ValueError, match='trains nose, which the model does not have: choose of llm'):
        melt(m, Stage('x', 'lm', dict(llm=1e-3, nose=1e-3)))
    assert [p.requires_grad for p in m.parameters()] == before

def test_an_unknown_preset():
    with pytest.raises(ValueError, match="no recipe for '70b': choose nano"): recipe('70b')

@pytest.mark.parametrize('kw, args, want', [
    (dict(share=.5), (100.,), dict(seconds=50., steps=0)), (dict(share=.5), (100., 7), dict(seconds=0., steps=7)),
    (dict(steps=9), (100.,), dict(seconds=0., steps=9)), (dict(minutes=2.), (100.,), dict(seconds=120., steps=0)),
    (dict(tokens=1e6), (0., 0, 1000), dict(seconds=0., steps=1000)),
    (dict(tokens=1e6, context=100, batch=3), (0., 0, 1000), dict(seconds=0., steps=3334))])
def test_a_budget_in_any_unit(kw, args, want): assert limits(Stage('x', 'lm', dict(llm=1e-3), **kw), *args) == want

def test_a_stage_without_an_end():
    for kw in ({}, dict(tokens=1e6), dict(share=.3)):
        with pytest.raises(ValueError, match='stage x has no end'): limits(Stage('x', 'lm', dict(llm=1e-3), **kw))
