"""The watchman over a run: each signature on a made case, silence on a sound one, and his place in a run."""
import random
from dataclasses import replace

import pytest
import torch

from made import tiny
from omni_lite.data.tasks import Material, bind
from omni_lite.data.world import World
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.train.stages import NANO, Stage
from omni_lite.train.trainer import StageRun, Workshop, run_recipe, tracked
from omni_lite.train.watch import Watch, answered, books_in_use, by_sense, codes_fell, senses_apart, text_rose

WORLD = World('small')

@pytest.fixture(scope='module')
def parts(): return tiny()

@pytest.mark.parametrize('losses, rises', [([.3], False), ([.3, .31, .32], False), ([.3, .4], True), ([.01, .03], False),
                                           ([.5, .2, .25, .3], True), ([.5, .2, .3, .19], False)])
def test_text_rises_against_the_best_so_far(losses, rises):
    assert bool(text_rose([(str(i), l) for i, l in enumerate(losses)])) == rises

def test_a_sentence_names_stage_and_cure():
    said = text_rose([('2.1', .2), ('3', .9)])
    assert 'stage 3' in said and '0.20 after 2.1' in said and 'share of text' in said

def test_books_in_use_is_a_share(parts):
    rvq = OmniForCausalLM(parts[0].cfg).tokenizer.rvq
    assert books_in_use(rvq) == pytest.approx([1.]*8)
    rvq.books[3].cluster_size.zero_()[:4] = 7.
    now = books_in_use(rvq)
    assert now[3] == pytest.approx(.25, rel=1e-3) and 'level 4' in codes_fell([1.]*8, now)

def test_senses_are_apart_only_when_each_is_fine():
    assert senses_apart(dict(pictures=.9, speech=.9, both=.5)) and not senses_apart(dict(pictures=.9, speech=.3, both=0.))
    assert not senses_apart(dict(text=1., pictures=.9)) and not senses_apart(dict(pictures=.9, speech=.9, both=.8))

def test_answered_counts_rows_that_are_right_at_every_token(parts):
    m, proc = parts; rows = [bind(Material(WORLD, proc))['text'](random.Random(i)) for i in range(6)]
    class Knows(torch.nn.Module):  # writes what the labels say, but for one token of the second row
        def hidden(self, batch):
            y = batch['labels'].roll(-1, 1).clamp(min=0)
            y[1, (batch['labels'][1] >= 0).nonzero()[0, 0] - 1] += 1
            return torch.nn.functional.one_hot(y, 900).float()
    k = Knows(); k.device = torch.device('cpu'); k.llm = torch.nn.Module(); k.llm.lm_head = torch.nn.Identity()
    assert answered(k, rows) == pytest.approx(5/6)
    assert set(by_sense(m.eval(), bind(Material(WORLD, proc)), n=2)) == {'text', 'pictures'}  # no speech in this material

def test_a_run_keeps_warnings_and_gradients(parts, tmp_path, capsys, monkeypatch):
    m, proc = parts
    losses = iter([.2, .9])
    monkeypatch.setattr('omni_lite.train.trainer.text_loss', lambda shop: next(losses))
    lang = next(s for s in NANO if s.name == 'lang')
    shop = Workshop(m, proc, WORLD, None, tokens=256, progress=False)
    results = run_recipe(shop, [lang, replace(lang, name='again')], steps=20, out=tmp_path)
    assert results[0]['warnings'] == [] and 'stage again' in results[1]['warnings'][0]
    assert 'watch: text loss rose to 0.90' in capsys.readouterr().out
    assert '"grad_llm"' in (tmp_path/'log.jsonl').read_text()

def test_an_unknown_tracker_says_so(tmp_path):
    with pytest.raises(ValueError, match='nothing cannot be used here: pip install nothing'): tracked('nothing', tmp_path)

def test_tensorboard_gets_a_curve_per_term(parts, tmp_path):
    pytest.importorskip('tensorboard')
    m, proc = parts; shop = Workshop(m, proc, WORLD, None, tokens=256, progress=False)
    run_recipe(shop, [next(s for s in NANO if s.name == 'lang')], steps=20, acc=tracked('tensorboard', tmp_path))
    assert list(tmp_path.rglob('events.out.tfevents*'))
