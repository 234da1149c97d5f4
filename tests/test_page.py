"""The report's page: one file, everything inside, nothing that a text could break."""
import base64

import numpy as np
import pytest
from PIL import Image

from made import Page
from omni_lite.evaluate import report as R
from omni_lite.evaluate.report_page import Told, page, spread, waterfall

LAPS = dict(files=.001, prompt=.02, text=.01, step=.03, frames=.02, flow=.05, vocoder=.01)
TIMES = dict(first_text_s=.02, first_sound_s=sum(LAPS.values()), total_s=.4, rtf=.3, laps=LAPS)

def card(**kw):
    row = dict(ability='text <b>', n=4, score=.5, low=.2, high=.8, chance=None, ceiling=.9, unit='right')
    return dict(facts=dict(model='tiny', torch='2'), rows=[row], examples=[dict(ability='a', question='<script>x</script>', answer='b',
                truth='c')], stages=[dict(stage='1.1', seconds=9, text_loss=.5), dict(stage='2', seconds=9, text_loss=.1)]) | kw

def told(i=0, **kw):
    sound = .1*np.sin(np.arange(6000)/9).astype(np.float32)
    return Told(f'what is {i}?', 'a red bus.', 'a red <i>bus.', sound, TIMES, **kw)

PNG = base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII=')

def test_answers_can_be_heard_seen_and_checked():
    spoken = told(1, asked=np.zeros(4800, np.float32), heard='a red bus', mos=3.21)
    got = Page(page(card(), PNG, [told(seen=Image.new('RGB', (8, 8))), spoken], [('teacher', spoken.sound)]))
    assert got.count('audio') == 2 + 1 + 1  # two answers, one question, one copy
    assert got.count('img') == 1 + 1 + 1 + 1  # the card, what was seen, the waterfall, the stages
    assert all(t in got.data for t in ('a red <i>bus.', '<script>x</script>', '3.2', '0 %', '141 ms', '0.30', 'text <b>'))

def test_a_bare_card_is_a_page_too():
    got = Page(page(card(stages=None, examples=[]), PNG, [], []))
    assert got.count('audio') == 0 and 'Answers' not in got.data

def test_many_answers_are_thinned_evenly():
    assert spread(list(range(50)), 5) == [0, 10, 20, 30, 40] and spread([1, 2], 5) == [1, 2]
    assert Page(page(card(), PNG, [told(i) for i in range(50)], [])).count('audio') == 16

def test_the_waterfall_ends_where_the_first_sound_is():
    ax = waterfall([told(), told(1)]).axes[0]
    ends = [max(b.get_x() + b.get_width() for b in ax.patches if round(b.get_y() + b.get_height()/2) == k) for k in (0, 1)]
    assert ends == pytest.approx([1e3 * TIMES['first_sound_s']]*2)
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == list(LAPS)  # in the order of the way

def test_the_card_writes_its_page(tmp_path, monkeypatch):
    import omni_lite.evaluate.codec as codec
    monkeypatch.setattr(codec, 'rulers', lambda names: (dict(mos=lambda a, b: 4.5), []))
    c = R.Card.__new__(R.Card); c.told, c.copies, c.progress = [told()], [], False
    (tmp_path/'report.png').write_bytes(PNG)
    c.write_page(card(), tmp_path)
    assert '4.5' in Page((tmp_path/'report.html').read_text()).data and c.told[0].mos == 4.5
