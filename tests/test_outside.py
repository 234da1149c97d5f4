"""What the world does not know, the same in other words, and three turns about a picture."""
import random, re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from made import beeper
from omni_lite.config import preset
from omni_lite.data.outside import ASKED, ASKED_LATER, ELSEWHERE, GREETINGS, REPLIES, UNTOLD, UNTOLD_LATER, is_kept, outside
from omni_lite.data.speech import (HIBARI_VOICES, SOMEBODY, TEST_VOICES, build_speech, check_lines, outside_lines, sample_lines, somebody,
                                   spec_of, voice_split)
from omni_lite.data.tasks import Material, bind
from omni_lite.data.wordings import reword
from omni_lite.data.world import World
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer

WORLD, seeds = World('small'), st.integers(0, 2**32)
FRAME = set(re.findall(r'[a-z]+', re.sub(r'\{\w+\}', ' ', ' '.join((
    *ASKED, *UNTOLD, *ASKED_LATER, *UNTOLD_LATER, ELSEWHERE['act'])))))

@given(seeds)
def test_a_question_from_outside_keeps_to_its_split(seed):
    for split in ('train', 'test'):
        s = outside(WORLD, split, seed); own = set(re.findall(r'[a-z]+', s.question)) - FRAME
        assert s == outside(WORLD, split, seed) and s.answer in REPLIES and s.split == split
        wrong = [w for k, ws in ELSEWHERE.items() if k != 'act' for w in ws.split() if w in own and is_kept(w) != (split == 'test')]
        assert not wrong or s.question in GREETINGS, wrong

def test_the_test_asks_in_shapes_of_its_own():
    assert not set(ASKED + UNTOLD) & set(ASKED_LATER)

@settings(max_examples=200)
@given(seeds, st.sampled_from(WORLD.families))
def test_other_words_ask_for_the_same(seed, family):
    s = WORLD.sample(family, 'train', seed); rng = random.Random(seed)
    for split in ('train', 'test'):
        new = reword(s.question, rng, split)
        keep = {*WORLD.names, *WORLD.numbers, 'left', 'right', *WORLD.colors} & set(re.findall(r'[a-z]+', s.question))
        assert keep <= set(re.findall(r'[a-z]+', new)), (s.question, new)
        assert '\\' not in new and not re.search(r'\{|\}', new)

def test_what_no_rule_knows_stays():
    assert reword('is a cow an animal or a food?', random.Random(0), 'test') == 'is a cow an animal or a food?'

@given(st.integers(0, 10**9))
def test_a_stranger_is_a_speaker_and_no_test_voice(number):
    v = somebody(number)
    assert .45 < v.f0_scale < 1.5 and .6 < v.formant_scale < 1.5 and v.breath >= 0 and v == spec_of(f'{SOMEBODY} {number}')
    assert all(v != HIBARI_VOICES[t] for t in TEST_VOICES if t in HIBARI_VOICES) and voice_split(f'{SOMEBODY} {number}') == 'train'

@pytest.mark.parametrize('name', ['somebody', 'somebody x', 'somebody -1', 'nobody 3', ''])
def test_a_voice_nobody_has(name):
    with pytest.raises(ValueError, match='choose one of'): spec_of(name)

@pytest.fixture(scope='module')
def material(tmp_path_factory):
    rng = np.random.default_rng(0)
    lines = check_lines(sample_lines(WORLD, 'train', 150, rng) + outside_lines(WORLD, 'train', 30, rng))
    store = build_speech(lines, tmp_path_factory.mktemp('store'), 0, False, speaker=beeper)
    tok = train_tokenizer(l for l, _ in zip(WORLD.corpus(0), range(500)))
    codes = rng.integers(0, min(preset('tiny').audio.codebook_sizes), (sum(r['n_frames12'] for r in store.rows), 8), dtype=np.int16)
    return Material(WORLD, OmniProcessor(tok, preset('tiny')), store, codes)

def test_three_turns_show_one_picture_and_hear_one_question(material):
    tasks, tok = bind(material), material.proc.tok
    for seed in range(8):
        r = tasks['picture_turns'](random.Random(seed))
        assert len(r.pictures) == 1 and (r.codes[:, 0] >= 0).any() and not (r.code_labels >= 0).any()
        heard, seen = (r.codes[:, 0] >= 0).nonzero().min(), r.see.nonzero().max()
        assert seen < heard and tok.decode(r.ids).count('<C_A>') == 3
        assert (r.labels[heard:] >= 0).any(), 'the answer to what is heard is learned'

def test_rows_from_outside(material):
    tasks, tok = bind(material), material.proc.tok
    pictures = [len(tasks['outside'](random.Random(i)).pictures) for i in range(60)]
    assert 4 < sum(pictures) < 30, 'about one in four is asked beside a picture'
    for name in ('outside', 'spoken_outside', 'outside_aloud'):
        r = tasks[name](random.Random(3))
        assert any(a.strip('.') in tok.decode(r.ids[r.labels >= 0]) for a in REPLIES), name
        assert bool((r.code_labels[:, 0] >= 0).any()) == (name == 'outside_aloud')
        assert bool((r.codes[:, 0] >= 0).any()) == (name != 'outside')

def test_only_training_rewords(material):
    test = Material(WORLD, material.proc, split='test'); rng = random.Random(0)
    assert {test.typed(rng, 'what is this?') for _ in range(50)} == {'what is this?'}
    assert len({material.typed(rng, 'what is this?') for _ in range(50)}) > 10
