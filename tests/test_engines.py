"""Any program as a voice, several voices as one cast, recordings as lines; no voice package is needed."""
import pickle, shlex, sys

import numpy as np
import pytest
import soundfile as sf

from omni_lite.data import speech as S
from test_speech import beeper

BEEP = '''
import sys, wave, math, struct
out, text = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()
if 'fail' in text: sys.exit('no such voice')
if 'nothing' in text: sys.exit(0)
level = 0 if 'silent' in text else 9000
f = wave.open(out, 'wb'); f.setparams((1, 2, 8000, 0, 'NONE', ''))
f.writeframes(b''.join(struct.pack('<h', int(level*math.sin(i/3))) for i in range(400*len(text)))); f.close()
if 'sleep' in text: __import__('time').sleep(9)
'''

def command(*args, **kw): return S.Command(shlex.join([sys.executable, '-c', BEEP, *args]), **kw)

@pytest.mark.parametrize('text', ["it's", '$(touch x); `ls` | cat', '{voice} {out}', '-v 3', 'a "b" \\ c', 'été 猫'])
def test_text_arrives_as_it_is(text):
    u = command('{out}', '{text}')(text, 'tin')
    assert u.seconds == pytest.approx(.05*len(' '*text.startswith('-') + text), abs=.1)
    assert (u.text, u.voice, u.words, u.sample_rate) == (text, 'tin', None, 24000) and .05 < np.abs(u.wav).max() <= .95

def test_without_text_it_is_read_from_the_input():
    assert command('{out}')('seven letters').seconds == pytest.approx(command('{out}', '{text}')('seven letters').seconds)

@pytest.mark.parametrize('text, says', [('fail', 'no such voice'), ('nothing', 'it wrote no sound'), ('silent', 'was silent about')])
def test_a_program_that_fails(text, says):
    with pytest.raises(ValueError, match=says): command('{out}', '{text}')(text)

def test_bad_command_lines():
    with pytest.raises(ValueError, match='has no {out}'): S.Command('cat {text}')
    with pytest.raises(ValueError, match="no program 'no-such'"): S.Command('no-such {out}')
    with pytest.raises(ValueError, match='needs more than 0.5 s'): command('{out}', '{text}', seconds=.5)('sleep')

def test_a_cast_builds_a_store_and_counts_what_failed(tmp_path):
    cast = S.Cast(dict(tin=command('{out}', '{text}'), heart=beeper))
    assert pickle.loads(pickle.dumps(S.Cast(dict(tin=cast.engines['tin'])))).engines['tin'].words == cast.engines['tin'].words
    lines = [dict(text=t, voice=v) for t in ('one two', 'please fail') for v in ('tin', 'heart')]
    store = S.build_speech(lines, tmp_path, workers=0, progress=False, speaker=cast)
    assert [(r['text'], r['voice']) for r in store.rows] == [('one two', 'tin'), ('one two', 'heart'), ('please fail', 'heart')]
    assert (store[0]['word'] == -2).all() and set(store[1]['word'].tolist()) >= {0, 1}
    assert 'no such voice' in (tmp_path/'datasheet.json').read_text()

def test_recordings_among_made_lines(tmp_path):
    x = .3*np.sin(np.arange(16000)/9).astype(np.float32); sf.write(tmp_path/'a.wav', x, 16000)
    lines = [dict(text='hm', audio=str(tmp_path/'a.wav'), voice='me', licence='CC0', words=[['hm', .2, .7]]),
             dict(text='bell', kind='sound', audio=str(tmp_path/'a.wav')), dict(text='one two')]
    store = S.build_speech(lines, tmp_path/'s', workers=0, progress=False, speaker=beeper)
    assert [r['recorded'] for r in store.rows] == [True, True, False]
    assert store[0]['word'].tolist().count(0) in (6, 7) and (store[1]['word'] == -1).all()
    sheet = (tmp_path/'s/datasheet.md').read_text()
    assert '2 were recorded' in sheet and 'hibari' in sheet and '| recordings | CC0 |' in sheet and '| recordings | not stated |' in sheet
