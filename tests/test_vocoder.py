import math
import pytest
import torch
from hypothesis import given, settings, strategies as st
from omni_lite.audio.mel import voice_mel
from omni_lite.audio.hifigan import Discriminators, adversarial_loss, discriminator_loss
from omni_lite.audio.vocoder import (FILTER_HOP, Pitch, Vocoder, VocoderStream, analyse, envelope_matrix, pitch_grid,
                                     pitch_loss, pulse_train, spectral_loss, synthesise, vocoder_loss)


def tiny(**kw):
    torch.manual_seed(0)
    voc = Vocoder(**(dict(channels=16, up_channels=8, kernels=(3,), pitch_channels=8) | kw))
    torch.nn.init.normal_(voc.head.weight, std=.2)
    return voc


def some_mel(batch=1, T=20, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 80, T, generator=g).cumsum(2) * .3 - 5


@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 7), min_size=1, max_size=6), n_fft=st.sampled_from([480, 960]), batch=st.integers(1, 2))
def test_pieces_equal_whole(cuts, n_fft, batch):
    n = sum(cuts)
    if n < 3: return
    voc, mel = tiny(n_fft=n_fft).eval(), some_mel(batch, n)
    stream = VocoderStream(voc, seed=4)
    got = torch.cat([stream.push(p) for p in mel.split(cuts, 2)] + [stream.finish()], 1)
    with torch.no_grad(): whole = voc(mel, seed=4)
    assert got.shape == whole.shape == (batch, 480*n)
    assert torch.allclose(got, whole, atol=1e-4)


def test_delay_is_what_is_said():
    stream = VocoderStream(tiny().eval())
    assert stream.push(some_mel(T=1)).shape[1] == 480 - 360
    assert stream.push(some_mel(T=4)).shape[1] == 4*480
    assert stream.push(some_mel(T=1)[..., :0]).shape[1] == 0
    assert stream.finish().shape[1] == 360
    assert VocoderStream(tiny().eval()).finish().shape[1] == 0


def test_future_changes_nothing():
    voc, mel = tiny().eval(), some_mel(T=20)
    other = mel.clone(); other[..., 12:] += 1
    with torch.no_grad(): a, b = voc(mel), voc(other)
    assert torch.allclose(a[:, :12*480 - 360], b[:, :12*480 - 360], atol=1e-5)
    assert not torch.allclose(a[:, 12*480:], b[:, 12*480:], atol=1e-3)


@pytest.mark.parametrize('hz', [90., 220., 400.])
def test_pulses_have_the_pitch_and_the_limit(hz):
    x, phase = pulse_train(torch.full((1, 200), hz))
    spec = torch.fft.rfft(x[0] * torch.hann_window(24000)).abs()
    peaks = spec[(torch.arange(1, 11) * hz).round().long()]
    assert peaks.min() > .8 * peaks.max()
    assert spec[11100:].max() < .02 * peaks.max()
    assert abs((phase.item() - (hz * 200*FILTER_HOP/24000)) % 1 % .999999) < 1e-3
    assert math.isclose(x.max().item(), math.floor(11000/hz), rel_tol=.02)


def test_silence_where_unvoiced():
    f0 = torch.tensor([[200., 200, 0, 0, 200]])
    x = pulse_train(f0)[0].reshape(5, FILTER_HOP)
    assert x[2:4].abs().max() == 0 and x[4].abs().max() > 1 and torch.isfinite(x).all()


@pytest.mark.parametrize('n_fft', [360, 480, 960])
def test_overlap_add_rebuilds(n_fft):
    win, x = torch.hann_window(n_fft), torch.randn(1, 3600)
    y, d = synthesise(analyse(x, win, {}, 'x'), win, {}), n_fft - FILTER_HOP
    assert torch.allclose(y[:, 2*d:], x[:, d:-d], atol=1e-4)


def test_envelope_interpolates():
    E = envelope_matrix(80, 480)
    assert torch.allclose(E @ torch.full((80,), -3.), torch.full((241,), -3.), atol=1e-5)
    assert (E >= 0).all() and (E @ torch.arange(80.)).diff().min() >= -1e-5


def test_untrained_vocoder_has_the_right_loudness():
    torch.manual_seed(0)
    t = torch.arange(24000) / 24000
    wav = sum(torch.cos(2*math.pi*220*k*t) for k in range(1, 30))[None] * .01
    mel = voice_mel(wav)
    with torch.no_grad(): made = voice_mel(Vocoder().eval()(mel, torch.full((1, 200), 220.)))
    loud = lambda m: m[..., 5:-5].exp().mean().log()
    assert abs(loud(made) - loud(mel)) < .6


def test_a_stream_leaves_the_shared_network_alone(monkeypatch):
    "Whoever else speaks with the same vocoder sees its own weights, in single precision, at any moment."
    voc, seen, forward = Vocoder(20, 16).eval(), [], Pitch.forward
    def watched(self, x, state=None):
        seen.append({p.dtype for p in voc.pitch_net.parameters()})
        return forward(self, x, state)
    monkeypatch.setattr(Pitch, 'forward', watched)
    with torch.no_grad(): a = VocoderStream(voc).push(torch.randn(1, 20, 12)); b = voc.source_pitch(torch.randn(1, 20, 12))
    assert len(seen) == 2 and seen == [{torch.float32}]*2 and a.dtype == b.dtype == torch.float32

def test_seed():
    voc, mel = tiny().eval(), some_mel()
    with torch.no_grad():
        assert torch.equal(voc(mel, seed=1), voc(mel, seed=1))
        assert not torch.equal(voc(mel, seed=1), voc(mel, seed=2))
        assert voc(mel * 0 + 50).abs().max() <= .99


def test_losses_reach_every_weight():
    voc, wav = tiny().train(), torch.randn(2, 480*12) * .1
    f0 = torch.full((2, 48), 200.); f0[:, :10] = 0
    terms, fake, true = vocoder_loss(voc, voice_mel(wav), wav, f0)
    assert fake.shape == true.shape == (2, 480*11)
    sum(terms.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in voc.parameters())


def test_loss_with_no_voiced_frame_and_with_silence():
    voc, wav = tiny().train(), torch.zeros(1, 480*12)
    terms, _, _ = vocoder_loss(voc, voice_mel(wav), wav, torch.zeros(1, 48))
    assert all(torch.isfinite(v) for v in terms.values()) and terms['pitch'] == 0
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in voc.parameters() if p.grad is not None)


def test_spectral_loss_orders_sounds():
    torch.manual_seed(0)
    wav = torch.randn(1, 9600) * .1
    close, far = (sum(spectral_loss(wav * g, wav).values()) for g in (.9, .3))
    assert sum(spectral_loss(wav, wav).values()) == 0 and close < far


def test_pitch_is_learned():
    torch.manual_seed(0)
    voc = tiny(pitch_channels=32)
    f0 = torch.linspace(120, 320, 16)[:, None].repeat(1, 80)
    mel = voice_mel(.02*pulse_train(f0)[0]); voc.set_stats(mel)
    opt = torch.optim.AdamW(voc.pitch_net.parameters(), 5e-3)
    first = pitch_loss(voc, mel, f0)['pitch'].item()
    for _ in range(60):
        loss = sum(pitch_loss(voc, mel, f0).values()); opt.zero_grad(); loss.backward(); opt.step()
    assert pitch_loss(voc, mel, f0)['pitch'].item() < .2 * first


def test_critics_learn_and_the_loss_cuts_the_gradient():
    torch.manual_seed(0)
    critics, wav = Discriminators(1/16), torch.randn(2, 4000).cumsum(1) * .01
    fake = (torch.randn(2, 4000) * .1).requires_grad_()
    opt = torch.optim.Adam(critics.parameters(), 5e-3)
    before = discriminator_loss(critics, wav, fake).item()
    for _ in range(20):
        loss = discriminator_loss(critics, wav, fake); opt.zero_grad(); loss.backward(); opt.step()
    assert fake.grad is None and loss.item() < before
    sum(adversarial_loss(critics, wav, fake).values()).backward()
    assert fake.grad.abs().sum() > 0


@pytest.mark.parametrize('rate', [50., 80., 200.])
def test_pitch_grid_keeps_a_constant(rate):
    n = int(rate)
    assert torch.allclose(pitch_grid(torch.full((n,), 180.), rate, 50), torch.full((200,), 180.))
    assert (pitch_grid(torch.zeros(n), rate, 50) == 0).all()


def test_pitch_grid_timing():
    f0 = torch.cat([torch.zeros(40), torch.linspace(200, 300, 40)])  # starts at 0.5 s at 80 Hz
    got = pitch_grid(f0, 80., 50)
    assert abs(int((got > 0).float().argmax()) / 200 - .5) <= .01
    assert (got[got > 0].diff() >= 0).all()


def test_wrong_sizes():
    for n in (500, 240):
        with pytest.raises(ValueError, match='multiple of 120'): Vocoder(n_fft=n)
    with pytest.raises(ValueError, match='bins'): tiny().set_stats(torch.zeros(128, 10))


def test_state_dict_round_trip():
    a, b = tiny(), Vocoder(channels=16, up_channels=8, kernels=(3,), pitch_channels=8)
    b.load_state_dict(a.state_dict())
    with torch.no_grad(): assert torch.equal(a.eval()(some_mel()), b.eval()(some_mel()))
