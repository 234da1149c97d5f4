"""The check-up: silent on the shipped model, each check on the failure it is named for, and the doctor who prints them."""
import copy, json, subprocess, sys

import numpy as np
import pytest
import torch

from omni_lite import doctor
from omni_lite.evaluate import checkup
from omni_lite.evaluate.checkup import CHECKS, SENTENCES, Patient, examine, mel_off, patient, pitch_track, say_frames
from omni_lite.evaluate.failures import GALLERY, cause
from omni_lite.evaluate.failures_voice import Restless, transport
from omni_lite.paths import root

NANO = root()/'checkpoints'/'nano'

@pytest.fixture(scope='module')
def nano():
    torch.manual_seed(0); torch.set_num_threads(1)
    return patient(NANO)

@pytest.mark.parametrize('name', CHECKS)
def test_no_false_alarm_on_the_shipped_checkpoint(nano, name):
    f = examine(nano, name)
    assert f.ok, f.detail

@pytest.mark.parametrize('name', GALLERY)
def test_each_failure_is_caught_by_its_check_and_the_sound_model_is_not(nano, name):
    state = {k: v.clone() for k, v in nano.model.state_dict().items()}
    c = cause(name, nano)
    assert c.sound.name == c.broken.name == GALLERY[name].check
    assert c.sound.ok and not c.broken.ok, (c.sound.detail, c.broken.detail)
    assert c.broken.cure and c.broken.detail != c.sound.detail
    assert all(torch.equal(v, state[k]) for k, v in nano.model.state_dict().items()), 'the gallery breaks copies'

def test_each_check_but_the_plainest_has_a_failure_in_the_gallery():
    assert set(CHECKS) - {g.check for g in GALLERY.values()} == {'finite weights', 'codec'}

def test_weights_that_are_no_numbers(nano):
    m = copy.deepcopy(nano.model); next(m.eye.parameters()).data.view(-1)[0] = torch.inf
    f = examine(nano.like(m), 'finite weights')
    assert not f.ok and f.figure == 1 and 'eye.' in f.detail

def test_a_codec_that_lost_its_mel_decoder(nano):
    m = copy.deepcopy(nano.model)
    with torch.no_grad(): m.tokenizer.decoder.out.weight.zero_(); m.tokenizer.decoder.refine.out.weight.zero_()
    assert not examine(nano.like(m), 'codec').ok

def test_the_checks_leave_a_model_as_it_was(nano):
    m = copy.deepcopy(nano.model); before = {k: v.clone() for k, v in m.state_dict().items()}
    for name in ('noise of the flow', 'gradient through codes'): examine(nano.like(m), name)
    m.tokenizer.rvq.__class__ = Restless
    assert not examine(nano.like(m), 'codebooks at rest').ok
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert 'field' not in vars(m.flow) and all(w.grad is None for w in m.parameters())

def test_what_is_missing_is_left_out(nano):
    found, gone = checkup.checkup(Patient(nano.model, nano.proc))
    assert {f.name for f in found} | set(gone) == set(CHECKS) and 'codec' in gone and 'text' in gone
    assert 'stages' in gone['text after audio'] and 'shipped' in gone['codec']

def test_an_unknown_name_says_so(nano):
    with pytest.raises(ValueError, match="no check 'luck': choose one of finite weights"): examine(nano, 'luck')
    with pytest.raises(ValueError, match="no failure 'luck' in the gallery: choose one of text ratio 0"): cause('luck', nano)

# ---- what the checks measure with

@pytest.mark.parametrize('hz', [80, 133, 220, 440])
def test_pitch_of_a_tone(hz):
    t = np.arange(24000) / 24000
    wave = sum(np.sin(2*np.pi*k*hz*t)/k for k in (1, 2, 3)).astype(np.float32) * .2
    f, like = pitch_track(wave)
    assert (f / hz - 1).abs().median() < .03 and like.min() > .9

def test_noise_has_no_pitch():
    _, like = pitch_track(np.random.default_rng(0).normal(0, .1, 24000).astype(np.float32))
    assert (like > .6).float().mean() < .05

def test_the_average_mel_is_off_by_one():
    mel = torch.randn(80, 50)
    assert mel_off(mel, mel) == 0 and mel_off(mel, mel.mean(1, keepdim=True).expand(80, 60)) == pytest.approx(1)

def test_frames_in_a_batch_are_those_of_generation(nano):
    text = SENTENCES[1]; (codes, ended), = say_frames(nano.model, nano.proc, [text])
    b = nano.proc.builder.clear().tag('<C_Q>').text(f'please say, {text}').tag('<audiotext_start_baichuan>').tag('<C_A>').text(text)
    from omni_lite.omni.generate import Conversation
    events = Conversation(nano.model, nano.proc).read([b.done()]).reply(start='speak')
    assert ended and torch.equal(codes, torch.tensor([e.codes for e in events if e.kind == 'frame']))
    assert torch.equal(codes, nano.said[1][0])

def test_transport_only_reorders_and_shortens():
    torch.manual_seed(0); x, z = torch.randn(65, 3, 2), torch.randn(65, 3, 2)
    out = transport(x, z)
    assert torch.equal(out.flatten(1).sort(0).values, z.flatten(1).sort(0).values)
    assert (x - out).square().sum() < .9*(x - z).square().sum()

# ---- the doctor

def test_the_doctor_names_what_is_wrong_with_a_folder(nano, tmp_path, capsys):
    m = copy.deepcopy(nano.model)
    with torch.no_grad(): m.head.heads[0].bias[-1] -= 30; m.vocoder.pitch_net.out.bias[::65] -= 20
    m.save_pretrained(tmp_path, tok=nano.proc.tok)
    assert doctor.main(['--model', str(tmp_path), '--json']) == 1
    rows = {r['name']: r for r in json.loads(capsys.readouterr().out)['checks']}
    assert {n for n, r in rows.items() if not r['ok'] and r['needed']} == {'speech ends', 'whisper'}
    assert rows['speech ends']['cure'] and 'no stages.json' in rows['text']['detail'] and not rows['text']['needed']

def test_the_doctor_prints_a_row_for_each_check(nano, monkeypatch, capsys):
    monkeypatch.setattr(checkup, 'patient', lambda folder: Patient(nano.model, nano.proc))
    assert doctor.main(['--model', str(NANO)]) == 0
    out = capsys.readouterr().out
    assert all(f' {n} ' in out for n in CHECKS) and '--   codec ' in out and out.endswith('a sound model\n')

def test_a_folder_that_is_none(tmp_path, capsys):
    assert doctor.main(['--model', str(tmp_path)]) == 2
    assert 'is not a folder with a checkpoint' in capsys.readouterr().err

def test_the_doctor_stays_light():
    code = "import sys, omni_lite.doctor; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
