"""A published generator behind our mel: stretching, streaming, the config that names it."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from omni_lite.audio.hifigan import HIFIGAN, HiFiGAN
from omni_lite.audio.retune import RetunedHiFiGAN, RetunedStream, build_vocoder, fit_bridge, hifigan_json, stretch, vocoder_stream

HOPS = [120, 200, 256, 300, 480, 512, 600]

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0); torch.set_num_threads(1)

def loud(name='v1', **kw):
    g = HiFiGAN(replace(HIFIGAN[name], channels=16, **kw))
    for p in g.parameters(): p.data *= 1.6
    m = RetunedHiFiGAN(g, 8); torch.nn.init.normal_(m.bridge[2].weight, std=.1)
    return m.eval()

@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sampled_from(HOPS))
def test_stretching_in_pieces_is_stretching_at_once(sizes, hop):
    mel = torch.randn(2, 3, sum(sizes)); state, parts = {}, []
    for p in mel.split(sizes, -1): parts.append(stretch(p, hop, state)) if p.shape[-1] else None
    if not mel.shape[-1]: return
    state['last'] = True; parts.append(stretch(mel[..., :0], hop, state))
    got, want = torch.cat(parts, -1), stretch(mel, hop)
    assert got.shape == want.shape and torch.allclose(got, want, atol=1e-5)
    assert got.shape[-1]*hop >= 480*mel.shape[-1] > (got.shape[-1] - 1)*hop

@pytest.mark.parametrize('hop', HOPS)
def test_a_ramp_stays_a_ramp(hop):
    mel = torch.arange(40.).view(1, 1, 40); y = stretch(mel, hop)[0, 0]
    want = ((torch.arange(len(y)) + .5)*hop/480 - .5).clamp(0, 39)
    assert torch.allclose(y, want, atol=1e-4)

def test_a_stream_holds_no_more_than_it_needs():
    state = {}
    for _ in range(200): stretch(torch.randn(1, 3, 5), 256, state)
    assert state['mel'].shape[-1] <= 3 and state['done'] > 1800

@pytest.mark.parametrize('name', ['v1', 'v3', 'cpu'])
@pytest.mark.parametrize('sizes', [(1,)*9, (4, 5, 13), (30,), (1, 0, 28)])
def test_sound_in_pieces_is_sound_at_once(name, sizes):
    m = loud(name); mel = torch.randn(1, 80, sum(sizes)); s = RetunedStream(m)
    got = torch.cat([s.push(p) for p in mel.split(sizes, -1)] + [s.finish()], 1)
    with torch.no_grad(): want = m(mel)
    assert got.shape == want.shape == (1, 480*sum(sizes)) and torch.allclose(got, want, atol=1e-4)
    assert s.finish().shape == (1, 0)  # nothing is left

def test_the_future_beyond_the_latency_does_not_matter():
    m = loud(); mel = torch.randn(1, 80, 40); other = mel.clone(); other[..., 30:] += 1
    with torch.no_grad(): a, b = m(mel), m(other)
    n = 30*480 - round(RetunedStream(m).latency*24)
    assert torch.allclose(a[:, :n], b[:, :n], atol=1e-5) and not torch.allclose(a[:, 30*480:], b[:, 30*480:], atol=1e-3)

def test_fitting_trains_the_bridge_alone():
    m = loud(); before = [p.clone() for p in m.generator.parameters()]
    curve = fit_bridge(m, [torch.randn(24000)*.1], 30)
    assert curve[-1] < .8*curve[0] and all(torch.equal(a, b) for a, b in zip(before, m.generator.parameters()))
    assert all(p.grad is None for p in m.generator.parameters())

@pytest.mark.parametrize('name', ['v1', 'v2', 'v3', 'cpu'])
def test_the_config_builds_the_same_again(name):
    m = loud(name); again = build_vocoder(80, 64, hifigan_json(m.generator.cfg))
    assert again.generator.cfg == m.generator.cfg
    again = RetunedHiFiGAN(again.generator, 8); again.load_state_dict(m.state_dict())
    assert type(vocoder_stream(again)).__name__ == 'RetunedStream' and type(vocoder_stream(build_vocoder(80, 32))).__name__ == 'VocoderStream'
    with pytest.raises(ValueError, match='80 mel bins, not 64'): build_vocoder(64, 64, hifigan_json(m.generator.cfg))
