"""The report card: what is asked, in which order, and what is counted."""
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from made import beeper, tiny
from omni_lite.data.speech import build_speech, world_lines
from omni_lite.data.world import World
from omni_lite.evaluate import report as R
from omni_lite.evaluate.confusion import confusion, neighbours, worst

@pytest.fixture(scope='module')
def card(tmp_path_factory):
    store = build_speech(world_lines(World('small'), 900), tmp_path_factory.mktemp('store'), 0, False, speaker=beeper)
    return R.Card(*tiny(), World('small'), store, n=6, progress=False)

class Talk:
    "Stands in for a conversation: keeps what was added, answers by a rule."
    heard, rule = [], None
    def __init__(self, *a): self.turns = []; Talk.heard.append(self.turns)
    def add(self, *talks, speak=False): self.turns += talks; return self
    def reply(self, **kw): return iter(Talk.rule(self, kw))

@pytest.fixture
def talk(monkeypatch):
    monkeypatch.setattr(R, 'Conversation', Talk); Talk.heard = []
    return Talk

def done(text='', seconds=0.): return SimpleNamespace(kind='done', text=text, timings=dict(sound_s=seconds))

def test_the_picture_is_shown_once_and_asked_about_two_turns_later(card, talk):
    talk.rule = lambda self, kw: [SimpleNamespace(kind='text', text='no'), done('no')]
    found = card.spoken_cases(('image',)); card.rows = [dict(score=.9)]
    card.turns()
    assert len(talk.heard) == len(found) > 0
    for turns, (s, spoken) in zip(talk.heard, found):
        kinds = [[p['type'] for p in t[0]['content']] for t in turns]
        assert kinds == [['image', 'text'], ['text'], ['audio']]
        first = turns[0][0]['content'][1]['text']
        assert first == (s.more[0][0] if s.more else 'describe.') and first != s.question
        assert turns[2][0]['content'][0]['audio'] is spoken or np.array_equal(turns[2][0]['content'][0]['audio'][0], spoken[0])
    row = card.rows[-1]
    assert (row['score'], row['ceiling'], row['n']) == (0, .9, len(found)) and 0 < row['chance'] < 1

def test_answers_that_never_end_are_counted(card, talk):
    talk.rule = lambda self, kw: [done(seconds=kw['max_seconds'] if i == 3 else 1.2) for i in range(len(self.turns))]
    card.rows = []; card.endings(25, 4.)
    assert [len(t) for t in talk.heard] == [10, 10, 5] and all(kw[0]['role'] == 'user' for t in talk.heard for kw in t)
    row = card.rows[0]
    assert row['n'] == 25 and row['score'] == 22/25 and row['chance'] is None
    assert '22' not in R.markdown(dict(rows=card.rows, examples=[])) and '88 % right' in R.markdown(dict(rows=card.rows, examples=[]))

def test_a_real_conversation_of_three_turns(card):
    card.rows = [dict(score=0.)]; card.n, was = 1, card.n
    try: card.turns()
    finally: card.n = was
    assert card.rows[-1]['n'] == 1

def test_every_thing_is_asked_for_and_every_answer_has_a_column(card):
    card.naming(per=1)
    assert list(card.named) == ['new compositions', 'a style never seen']
    for pairs in card.named.values():
        assert len(pairs) == len(card.world.drawn) and {a for a, _ in pairs} <= set(card.world.drawn)
        names = sorted({a for a, _ in pairs})
        assert confusion(pairs, names).sum() == len(pairs)

@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8).flatmap(lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n)), min_size=1, max_size=40)
                                 .map(lambda pairs: (n, pairs))))
def test_the_order_is_a_permutation_and_shares_are_shares(made):
    n, pairs = made
    names = [f'n{i}' for i in range(n)]
    pairs = [(names[a], (names + ['?'])[b]) for a, b in pairs]
    assert sorted(neighbours(confusion(pairs, names))) == list(range(n))
    top = worst(pairs, 3)
    assert all(0 < s <= 1 and a != b for a, b, s in top) and [s for *_, s in top] == sorted((s for *_, s in top), reverse=True)
