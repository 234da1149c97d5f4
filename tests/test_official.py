"""The released checkpoint: its names, its folder, and that its weights compute what they compute there.

Shapes, config and computation of the release are written down here a second time, from the reference sheet, so that a slip
in the package's tables cannot agree with itself."""
import json, math, subprocess, sys
from dataclasses import replace
from pathlib import Path
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from omni_lite.config import preset
from omni_lite.omni import release
from omni_lite.omni.model import OmniForCausalLM
from omni_lite.omni.official import RULES, OURS_ONLY, load_released, pattern, places, released, released_shapes, rename, tensors
from omni_lite.omni.release import config_from_release, load_official, release_config, role_ids, save_official
from omni_lite.vision.projector import to_released

BIG = dict(hidden=3584, ffn=18944, layers=28, heads=28, kv=4, vocab=152064, books=(8192, 4096, 2048) + (1024,)*5, head_layers=3,
           ear=1280, ear_ffn=5120, mels=128, encoder=32, decoder=8, ear_heads=20, eye=1280, depth=32, eye_heads=16, ratio=4,
           pre=512, pre_layers=12, flow_heads=8, channels=256, mid=12, blocks=4)
TINY = dict(hidden=128, ffn=96, layers=2, heads=2, kv=1, vocab=200, books=(16, 14, 12, 10, 8, 8, 8, 8), head_layers=2,
            ear=32, ear_ffn=64, mels=80, encoder=1, decoder=1, ear_heads=2, eye=32, depth=2, eye_heads=2, ratio=2,
            pre=32, pre_layers=1, flow_heads=2, channels=16, mid=2, blocks=1)
IDS = dict(audio_start=151, audio_end=152, audio_pad=153, audio_delim=154, audiotext_start=155, audiogen_start=156, audiogen_end=157,
           image_start=161, image_end=162, image_pad=163, video_place=164)

def whisper(p, n, d, f, rms=False):
    "A stack of Whisper-like layers: names -> shapes."
    out = {}
    for i in range(n):
        q = f'{p}.{i}.'
        out |= {f'{q}self_attn.{x}_proj.weight': (d, d) for x in ('q', 'k', 'v', 'out')}
        out |= {f'{q}self_attn.{x}_proj.bias': (d,) for x in ('q', 'v', 'out')}
        for norm in ('self_attn_layer_norm', 'final_layer_norm'):
            out |= {f'{q}{norm}.weight': (d,)} | ({} if rms else {f'{q}{norm}.bias': (d,)})
        out |= {q + 'fc1.weight': (f, d), q + 'fc1.bias': (f,), q + 'fc2.weight': (d, f), q + 'fc2.bias': (d,)}
    return out

def both(p, *shape): return {p + '.weight': shape, p + '.bias': shape[:1]}

def unet_block(p, wide, s, conv):
    "A ResNet, its transformers and, at the ends of the U-Net, a convolution."
    c = s['channels']
    out = both(p + '.0.mlp.1', c, 4*c) | both(p + '.0.res_conv', c, wide, 1)
    for j, k in ((1, wide), (2, c)): out |= both(f'{p}.0.block{j}.block.0', c, k, 3) | both(f'{p}.0.block{j}.block.2', c)
    inner = 64*s['flow_heads']
    for i in range(s['blocks']):
        q = f'{p}.1.{i}.'
        out |= both(q + 'norm1', c) | both(q + 'norm3', c) | {q + f'attn1.to_{x}.weight': (inner, c) for x in 'qkv'}
        out |= both(q + 'attn1.to_out.0', c, inner) | both(q + 'ff.net.0.proj', 4*c, c) | both(q + 'ff.net.2', c, 4*c)
    return out | (both(p + '.2', c, c, 3) if conv else {})

def shapes(s):
    "Section 6.2 of the reference sheet, for any sizes."
    d, L, e, a = s['hidden'], len(s['books']), s['eye'], s['ear']
    rows = d + 2*s['kv']*d//s['heads']
    out = {'model.embed_tokens.weight': (s['vocab'], d), 'lm_head.weight': (s['vocab'], d), 'model.norm.weight': (d,)}
    for i in range(s['layers']):
        p = f'model.layers.{i}.'
        out |= both(p + 'self_attn.W_pack', rows, d) | {p + 'self_attn.o_proj.weight': (d, d), p + 'mlp.down_proj.weight': (d, s['ffn'])}
        out |= {p + f'mlp.{x}_proj.weight': (s['ffn'], d) for x in ('gate', 'up')}
        out |= {p + f'{x}_layernorm.weight': (d,) for x in ('input', 'post_attention')}
    for i, n in enumerate(s['books']):
        out |= {f'model.audio_embed_layers.{i}.weight': (n + 1, d)} | both(f'audio_head.heads.{i}', n + 1, d)
    out |= {'model.visual_model.patch_embed.proj.weight': (e, 3, 2, 14, 14)}
    for i in range(s['depth']):
        p = f'model.visual_model.blocks.{i}.'
        out |= both(p + 'norm1', e) | both(p + 'norm2', e) | both(p + 'attn.qkv', 3*e, e) | both(p + 'attn.proj', e, e)
        out |= both(p + 'mlp.fc1', s['ratio']*e, e) | both(p + 'mlp.fc2', e, s['ratio']*e)
    p = 'model.visual_bridge_model.'
    out |= both(p + 'ln_q', e) | both(p + 'mlp.0', 4*e, 4*e) | both(p + 'mlp.2', d, 4*e)
    for i in range(s['head_layers']):
        p = f'audio_head.transformer_layers.{i}.'
        out |= {p + 'self_attention.in_proj_weight': (3*d, d), p + 'self_attention.in_proj_bias': (3*d,)}
        out |= both(p + 'self_attention.out_proj', d, d) | both(p + 'linear1', 2*d, L*d) | both(p + 'linear2', d, 2*d*L)
        out |= {p + f'layernorm{j}.weight': (d,) for j in (1, 2)}
    out |= {'audio_head.headnorm.weight': (d,)}
    p = 'audio_tokenizer.audio_model.'
    out |= both(p + 'conv1', a, s['mels'], 3) | both(p + 'conv2', a, a, 3) | whisper(p + 'layers', s['encoder'], a, s['ear_ffn'])
    out |= both(p + 'layer_norm', a) | {p + 'positional_embedding': (1500, a)}
    p = 'audio_tokenizer.audio_bridge_model.'
    out |= {p + f'{x}_proj.weight': (4*a, a, 4) for x in ('gate', 'up')} | {p + 'down_proj.weight': (4*a, 4*a)}
    out |= both(p + 'layer_norm', 4*a) | both(p + 'proj_decoder', a, 4*a)
    for i, n in enumerate(s['books']):
        out |= {p + f'vq_list.{i}.codebook.{x}': (n, 4*a) for x in ('embed', 'embed_avg')} | {p + f'vq_list.{i}.codebook.cluster_size': (n,)}
    p = 'audio_tokenizer.audio_decoder.'
    out |= {p + 'dconv1.conv.weight': (a, a, 3), p + 'dconv1.conv.bias': (a,), p + 'dconv2.conv.weight': (a, 80, 3), p + 'dconv2.conv.bias': (80,)}
    out |= both(p + 'dconv1.norm', a) | both(p + 'dconv2.norm', 80) | both(p + 'layer_norm', a) | {p + 'positional_embedding': (3000, a)}
    out |= whisper(p + 'layers', s['decoder'], a, s['ear_ffn'])
    for i, k in ((0, 80), (3, 256), (6, 256), (9, 256)):
        out |= both(p + f'post_net.layers.{i}', 256, k, 5) | both(p + f'post_net.layers.{i+1}', 256)
    out |= both(p + 'post_net.layers.12', 80, 256, 1)
    p, w, c = 'audio_tokenizer.audio_flow_matching_decoder.prenet.', s['pre'], s['channels']
    out |= both(p + 'in_mlp.0', 4*w, a) | both(p + 'in_mlp.2', w, 4*w) | whisper(p + 'transformer_layers', s['pre_layers'], w, 4*w, True)
    out |= {p + 'final_norm.weight': (w,), p + 'out_proj.weight': (80, w), p + 'positional_embedding': (5000, w)}
    p = 'audio_tokenizer.audio_flow_matching_decoder.conditional_decoder.'
    out |= both(p + 'time_mlp.linear_1', 4*c, 160) | both(p + 'time_mlp.linear_2', 4*c, 4*c)
    out |= unet_block(p + 'down_blocks.0', 160, s, True) | unet_block(p + 'up_blocks.0', 2*c, s, True)
    for i in range(s['mid']): out |= unet_block(f'{p}mid_blocks.{i}', c, s, False)
    return out | both(p + 'final_block.block.0', c, c, 3) | both(p + 'final_block.block.2', c) | both(p + 'final_proj', 80, c, 1)

def waves(n, d):
    "Sines, then cosines."
    t = torch.arange(n)[:, None] * torch.exp(-math.log(10000) / (d//2 - 1) * torch.arange(d//2))
    return torch.cat([t.sin(), t.cos()], 1)

def weights(s, seed=0):
    "A random release."
    g = torch.Generator().manual_seed(seed)
    def one(name, shape):
        if name.endswith('positional_embedding'): return waves(*shape)
        if name.endswith('cluster_size'): return torch.ones(shape)
        if 'norm' in name and name.endswith('weight') or 'ln_q.weight' in name: return 1 + .2*torch.randn(shape, generator=g)
        return torch.randn(shape, generator=g) * (.3 if len(shape) == 1 else math.prod(shape[1:])**-.5)
    return {k: one(k, v) for k, v in shapes(s).items()}

def config(s):
    "Its config.json, as section 6.1 lists it."
    ids = lambda *kinds: {f'{k}_token_id': IDS[k] for k in kinds}
    c = s['channels']
    return dict(
        architectures=['OmniForCausalLM'], model_type='omni', hidden_size=s['hidden'], intermediate_size=s['ffn'],
        num_hidden_layers=s['layers'], num_attention_heads=s['heads'], num_key_value_heads=s['kv'], head_dim=s['hidden']//s['heads'],
        vocab_size=s['vocab'], rms_norm_eps=1e-6, rope_theta=1000000., max_position_embeddings=8192, attention_qkv_pack=True,
        attention_qkv_bias=True, use_norm_head=False, tie_word_embeddings=False, sparse_attention_heads=None,
        sparse_attention_layers=[], sliding_window=None, use_sliding_window=False, multimodal=['audio', 'image', 'video', 'audiogen'],
        bos_token_id=1, eos_token_id=2, pad_token_id=0, torch_dtype='bfloat16',
        audio_config=dict(
            d_model=s['ear'], encoder_layers=s['encoder'], encoder_attention_heads=s['ear_heads'], encoder_ffn_dim=s['ear_ffn'],
            num_mel_bins=s['mels'], n_fft=400, hop_length=160, sampling_rate=16000, max_audio_seconds=30, split_overlap=0., kernel_size=3,
            stride_size=2, avg_pooler=4, decoder_layers=s['decoder'], decoder_attention_heads=s['ear_heads'], decoder_ffn_dim=s['ear_ffn'],
            decoder_kernel_size=3, decoder_stride_size=2, audio_head_transformer_layers=s['head_layers'],
            vq_config=dict(codebook_sizes=list(s['books'])),
            **ids('audio_start', 'audio_end', 'audio_pad', 'audio_delim', 'audiotext_start', 'audiogen_start', 'audiogen_end')),
        flow_matching_config=dict(
            sampling_rate=24000, hop_length=480, in_channels=80, spk_emb_dim=0, channels=[c], n_blocks=s['blocks'],
            num_mid_blocks=s['mid'], num_heads=s['flow_heads'], attention_head_dim=64, diffusion_steps=10, prenet_in_dim=s['ear'],
            prenet_out_dim=80, prenet_d_model=s['pre'], prenet_attention_heads=s['flow_heads'], prenet_ffn_dim=4*s['pre'],
            prenet_nlayers=s['pre_layers'], prenet_max_source_positions=5000, prenet_target_mel_length_scale_ratio=1.,
            use_hidden_states_before_dconv2=True, cfm_params=dict(sigma_min=1e-6, inference_cfg_rate=.7, training_cfg_rate=.2)),
        vocoder_config=dict(sampling_rate=16000, hop_length=256, n_fft=1024, num_mel_bins=80, channels=[256]*5),
        visual_config=dict(depth=s['depth'], embed_dim=s['eye'], num_heads=s['eye_heads'], mlp_ratio=s['ratio'], patch_size=14,
                           temporal_patch_size=2, spatial_merge_size=2, min_pixels=3136, max_pixels=3211264, hidden_size=3584,
                           image_size=224, **ids('image_start', 'image_end', 'image_pad')),
        video_config=dict(min_pixels=3136, max_pixels=602112, max_frame_num=32, decode_way='1fps', **ids('video_place')))

def write(folder, s=TINY, shards=4, state=None):
    "A released folder."
    state = weights(s) if state is None else state
    names = sorted(state); parts = [names[i::shards] for i in range(shards)]
    files = [f'model-{i+1:05}-of-{shards:05}.safetensors' for i in range(shards)]
    folder.mkdir(parents=True, exist_ok=True)
    for f, part in zip(files, parts): save_file({k: state[k].contiguous() for k in part}, folder/f)
    where = {k: f for f, part in zip(files, parts) for k in part}
    (folder/'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=where)))
    (folder/'config.json').write_text(json.dumps(config(s)))
    return folder

def read(folder): return {k: v for f in sorted(folder.glob('*.safetensors')) for k, v in load_file(f).items()}

@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write(tmp_path_factory.mktemp('release'))

@pytest.fixture(scope='module')
def state(): return weights(TINY)

@pytest.fixture(scope='module')
def model(folder): return load_official(folder)

# what the release computes, written once more

def rms(x, w): return x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6) * w

def turn(x, theta=1e6):
    "Rotary positions on (heads, T, width), halves layout."
    T, w = x.shape[1:]
    a = torch.arange(1, T + 1)[:, None] * theta ** (-torch.arange(0, w, 2) / w)  # the release counts from one
    a = torch.cat([a, a], 1); half = torch.cat([-x[..., w//2:], x[..., :w//2]], -1)
    return x * a.cos() + half * a.sin()

def llm_logits(w, x, s=TINY):
    "(T, D) embeddings to (T, vocabulary), and the hidden states."
    d, h, kv = s['hidden'], s['heads'], s['kv']; k = d // h
    causal = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    for i in range(s['layers']):
        p = f'model.layers.{i}.'
        qkv = F.linear(rms(x, w[p + 'input_layernorm.weight']), w[p + 'self_attn.W_pack.weight'], w[p + 'self_attn.W_pack.bias'])
        q, key, v = (t.reshape(len(x), -1, k).transpose(0, 1) for t in qkv.split([d, kv*k, kv*k], 1))
        q, key = turn(q), turn(key)
        key, v = (t.repeat_interleave(h // kv, 0) for t in (key, v))
        att = (q @ key.mT / k**.5).masked_fill(~causal, -math.inf).softmax(-1) @ v
        x = x + F.linear(att.transpose(0, 1).reshape(len(x), d), w[p + 'self_attn.o_proj.weight'])
        y = rms(x, w[p + 'post_attention_layernorm.weight'])
        gate, up = (F.linear(y, w[p + f'mlp.{n}_proj.weight']) for n in ('gate', 'up'))
        x = x + F.linear(F.silu(gate) * up, w[p + 'mlp.down_proj.weight'])
    x = rms(x, w['model.norm.weight'])
    return F.linear(x, w['lm_head.weight']), x

def put_in(x, ids, pad, rows):
    "Rows in the place of a pad id, in order."
    where = ids == pad
    assert int(where.sum()) == len(rows)
    order = where.long().cumsum(0) - 1
    return torch.where(where[:, None], rows[order.clamp(min=0)], x)

def heard(w, codes): return sum(w[f'model.audio_embed_layers.{i}.weight'][codes[:, i]] for i in range(codes.shape[1]))

def seen(w, values, grids, s=TINY):
    "Pictures to rows of the language model, through transformers' tower."
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig
    net = Qwen2VisionTransformerPretrainedModel(Qwen2VLVisionConfig(depth=s['depth'], embed_dim=s['eye'], num_heads=s['eye_heads'],
                                                                    mlp_ratio=s['ratio'], hidden_size=s['hidden'])).eval()
    p = 'model.visual_model.'
    lost, extra = net.load_state_dict({k[len(p):]: v for k, v in w.items() if k.startswith(p)}, strict=False)
    assert not extra and all(k.startswith('merger.') for k in lost)
    x, p = net(values, torch.tensor(grids)).last_hidden_state, 'model.visual_bridge_model.'
    x = F.layer_norm(x, x.shape[-1:], w[p + 'ln_q.weight'], w[p + 'ln_q.bias'], 1e-6).reshape(-1, 4*s['eye'])
    return F.linear(F.gelu(F.linear(x, w[p + 'mlp.0.weight'], w[p + 'mlp.0.bias'])), w[p + 'mlp.2.weight'], w[p + 'mlp.2.bias'])

def head_logits(w, hidden, codes, s=TINY):
    "(N, D) states and (N, L) codes to L tensors of logits."
    W, L = s['hidden'], len(s['books'])
    past = torch.stack([w[f'model.audio_embed_layers.{i}.weight'][codes[:, i]] for i in range(L - 1)], 1).cumsum(1)
    x = torch.cat([hidden[:, None], past], 1)  # (N, L, W)
    hidden_from = torch.ones(L, L).triu(1).bool()
    for i in range(s['head_layers']):
        p = f'audio_head.transformer_layers.{i}.'
        attention = nn.MultiheadAttention(W, W // 128, batch_first=True)
        attention.load_state_dict({k[len(p + 'self_attention.'):]: v for k, v in w.items() if k.startswith(p + 'self_attention.')})
        y = rms(x, w[p + 'layernorm1.weight'])
        h = rms(x + attention(y, y, y, attn_mask=hidden_from)[0], w[p + 'layernorm2.weight'])
        inner = F.gelu(torch.einsum('bld,tld->blt', h, w[p + 'linear1.weight'].reshape(2*W, L, W)))
        x = h + torch.einsum('blt,dlt->bld', inner, w[p + 'linear2.weight'].reshape(W, L, 2*W))
    x = rms(x, w['audio_head.headnorm.weight'])
    return [F.linear(x[:, i], w[f'audio_head.heads.{i}.weight'], w[f'audio_head.heads.{i}.bias']) for i in range(L)]

def some_codes(n, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, k, (n,), generator=g) for k in TINY['books']], 1)

def close(a, b): assert a.shape == b.shape and (a - b).abs().max() <= 1e-4, (a - b).abs().max()

@torch.no_grad()
def test_text_has_the_logits_of_the_release(model, state):
    ids = torch.randint(0, 150, (23,), generator=torch.Generator().manual_seed(2))
    want, _ = llm_logits(state, state['model.embed_tokens.weight'][ids])
    got = model.llm.lm_head(model.hidden(dict(input_ids=ids[None])))[0]
    assert want.std() > .3
    close(got, want)

@torch.no_grad()
@pytest.mark.parametrize('clip_first', [False, True])
def test_sound_pictures_and_frames_have_the_logits_of_the_release(model, state, clip_first):
    i, n = IDS, [4, 2, 2]  # tokens of a picture and of two frames
    frame = [i['image_start'], i['video_place'], i['video_place'], i['image_end']]
    picture = [i['image_start'], *[i['image_pad']]*4, i['image_end']]
    sight = [*frame, 7, *frame, *picture] if clip_first else [*picture, 7, *frame, *frame]
    ids = torch.tensor([5, i['audio_start'], *[i['audio_pad']]*5, i['audio_end'], *sight, 9, i['audiogen_start'], *[i['audio_pad']]*3, 11])
    grids, codes, g = [(1, 4, 4), (1, 2, 4), (1, 4, 2)], some_codes(8), torch.Generator().manual_seed(3)
    pixels = [torch.randn(h*w, 1176, generator=g) for _, h, w in grids]
    rows = seen(state, torch.cat(pixels), grids).split(n)
    x = put_in(state['model.embed_tokens.weight'][ids], ids, i['audio_pad'], heard(state, codes))
    x = put_in(put_in(x, ids, i['image_pad'], rows[0]), ids, i['video_place'], torch.cat(rows[1:]))
    want, _ = llm_logits(state, x)
    order = [1, 2, 0] if clip_first else [0, 1, 2]
    laid = torch.full((1, len(ids), 8), -1); laid[0, ids == i['audio_pad']] = codes
    batch = dict(input_ids=ids[None], codes=laid, see=((ids == i['image_pad']) | (ids == i['video_place']))[None],
                 patches=torch.cat([pixels[k] for k in order]), grids=[grids[k] for k in order])
    close(model.llm.lm_head(model.hidden(batch))[0], want)

@torch.no_grad()
def test_all_eight_heads_have_the_logits_of_the_release(model, state):
    codes, hidden = some_codes(9), torch.randn(9, TINY['hidden'], generator=torch.Generator().manual_seed(4))
    want = head_logits(state, hidden, codes)
    got = model.head(hidden, codes, model.audio_embed)
    assert [l.shape[1] for l in want] == [k + 1 for k in TINY['books']]
    for a, b in zip(got, want): close(a, b)
    model.head.blocks[0].norm_stream = False  # the quirk matters, so this test would see its loss
    assert (model.head(hidden, codes, model.audio_embed)[0] - want[0]).abs().max() > 1e-2
    model.head.blocks[0].norm_stream = True

@torch.no_grad()
def test_ear_and_voice_of_a_loaded_model_work(model):
    codes = model.tokenizer.encode(torch.randn(16000, generator=torch.Generator().manual_seed(5)))
    assert codes.shape == (13, 8) and (codes < torch.tensor(TINY['books'])).all()
    hidden = model.tokenizer.decode(codes[None]).hidden
    assert torch.isfinite(model.flow.prior(hidden)).all() and hidden.shape == (1, 51, TINY['ear'])

# names and shapes

def test_the_7b_rung_is_the_release():
    with torch.device('meta'): big = OmniForCausalLM(preset('7b'))
    got = released_shapes(big)
    assert got == shapes(BIG) and len(got) == 2413
    count = {k: math.prod(v) for k, v in got.items()}
    total, sines = sum(count.values()), sum(n for k, n in count.items() if k.endswith('positional_embedding'))
    assert (round(total/1e9, 3), round((total - sines)/1e9, 3)) == (11.022, 11.014)
    flow = 'audio_tokenizer.audio_flow_matching_decoder.'
    table = {'model.visual_model.': (631.18, 385), 'model.visual_bridge_model.': (44.58, 6), 'model.embed_tokens.': (545.00, 1),
             'model.layers.': (6525.62, 224), 'model.norm.': (.00, 1), 'lm_head.': (545.00, 1), 'model.audio_embed_layers.': (69.76, 8),
             'audio_head.': (1457.14, 47), 'audio_head.transformer_layers.': (1387.36, 30), 'audio_tokenizer.audio_model.': (636.97, 487),
             'audio_tokenizer.audio_bridge_model.': (284.46, 31), 'audio_tokenizer.audio_decoder.': (167.59, 149),
             flow + 'prenet.': (44.08, 163), flow + 'conditional_decoder.': (70.97, 910)}
    for part, want in table.items():
        n = [count[k] for k in got if k.startswith(part)]
        assert (round(sum(n)/1e6, 2), len(n)) == want, part

def test_a_name_fits_one_rule_and_comes_back():
    with torch.device('meta'): big = OmniForCausalLM(preset('7b'))
    for there in released_shapes(big):
        fits = [r for r in RULES if pattern(r[0]).match(there)]
        assert len(fits) == (0 if there.endswith('prenet.positional_embedding') else 1), there
        assert all(rename(k, RULES, True) == [there] for k in rename(there, RULES))
    mine = [k for k in tensors(big) if not any(o in k for o in OURS_ONLY)]
    assert sorted(mine) == sorted(k for ours, _ in places(big).values() for k in ours)
    assert rename('model.layers.1.mlp.up_proj.scale', RULES) == [] == rename('xmodel.norm.weight', RULES)

def test_the_visual_branch_agrees_with_its_own_notebook(model):
    mine = dict(released(model, ('eye.', 'bridge.'))); theirs = to_released(model.state_dict())
    assert mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())

def test_a_model_of_another_layout_is_named():
    with pytest.raises(ValueError, match='tokenizer.decoder.* has no place in the release: build'): places(OmniForCausalLM(preset('tiny')))

def test_parts_are_filled_in_place(model, state):
    other = OmniForCausalLM(model.cfg); before = {k: v.detach().clone() for k, v in tensors(other).items()}
    kept = dict(other.named_parameters())
    load_released(other, state, ('head.', 'audio_embed.'))
    for k, v in tensors(other).items():
        same = k.startswith(('head.', 'audio_embed.'))
        assert torch.equal(v, tensors(model)[k] if same else before[k]), k
    assert all(kept[k] is v for k, v in other.named_parameters())

def test_a_refused_state_changes_nothing(model, state):
    other = OmniForCausalLM(model.cfg); before = {k: v.detach().clone() for k, v in tensors(other).items()}
    bad = dict(state); bad['lm_head.weight'] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r'lm_head.weight is \(3, 3\), the config wants \(200, 128\)'): load_released(other, bad)
    assert all(torch.equal(v, before[k]) for k, v in tensors(other).items())

# config

def test_config_goes_both_ways():
    assert replace(config_from_release(release_config(preset('7b'))), name='7b') == preset('7b')
    cfg = config_from_release(config(TINY))
    assert config_from_release(release_config(cfg)) == cfg and cfg.head.num_heads == 1 and cfg.vision.ffn_dim == 64
    assert (cfg.ids.hear, cfg.ids.see, cfg.ids.speak) == ((151, 153, 152), (161, 163, 162), (156, 153, 157))
    assert (cfg.ids.frame, cfg.ids.aloud, cfg.ids.end) == (164, 155, 151643)
    again = json.loads(json.dumps(release_config(cfg)))
    lost = {f'{p}{k}' for p, d in (('', config(TINY)), ('audio_config.', config(TINY)['audio_config'])) for k in d
            if k not in (again if not p else again['audio_config'])}
    assert lost == {'audio_config.audio_delim_token_id'}, lost  # an id that nothing of ours uses

def test_baichuan_audio_numbers_its_ids_differently():
    d = config(TINY)
    d['audio_config'] |= dict(audio_start_token_id=151657, audio_end_token_id=151658, audio_pad_token_id=151659,
                              audiogen_start_token_id=151678, audiogen_end_token_id=151679, audiotext_start_token_id=151675)
    ids = config_from_release(d).ids
    assert ids.hear == (151657, 151659, 151658) and ids.speak == (151678, 151659, 151679) and ids.aloud == 151675

def test_channels_may_be_a_number():
    d = config(TINY); d['flow_matching_config']['channels'] = 16
    assert config_from_release(d) == config_from_release(config(TINY))

@pytest.mark.parametrize('path', ['hidden_size', 'audio_config.d_model', 'audio_config.vq_config.codebook_sizes', 'visual_config.depth',
                                  'visual_config.mlp_ratio', 'audio_config.audio_pad_token_id', 'flow_matching_config.prenet_d_model'])
def test_an_absent_key_is_named(path):
    d = config(TINY); at = d; *way, leaf = path.split('.')
    for k in way: at = at[k]
    del at[leaf]
    with pytest.raises(ValueError, match=f'{path} is absent from config.json'): config_from_release(d)

@pytest.mark.parametrize('part,key,value', [('', 'tie_word_embeddings', True), ('', 'head_dim', 32), ('', 'rms_norm_eps', 1e-5),
    ('audio_config', 'kernel_size', 5), ('flow_matching_config', 'attention_head_dim', 32), ('flow_matching_config', 'spk_emb_dim', 64),
    ('visual_config', 'enable', False), ('', 'sparse_attention_layers', [3])])
def test_a_key_that_asks_for_something_else_is_named(part, key, value):
    d = config(TINY); (d[part] if part else d)[key] = value
    with pytest.raises(ValueError, match=f'{key} is .* in config.json, only'): config_from_release(d)

def test_a_key_of_no_meaning_is_told(recwarn):
    config_from_release(config(TINY)); assert not recwarn.list
    with pytest.warns(UserWarning, match='audio_config.new_thing'):
        d = config(TINY); d['audio_config']['new_thing'] = 3; config_from_release(d)

@pytest.mark.parametrize('part,change', [('audio', dict(decoder='streaming')), ('flow', dict(left=5)), ('flow', dict(official=False)),
    ('vision', dict(place=True)), ('llm', dict(tie=True)), ('head', dict(dim=256)),
    ('head', dict(official=False)), ('ids', dict(speak=(1, 2, 3)))])
def test_what_the_release_cannot_say_is_refused(part, change):
    cfg = preset('7b'); cfg = replace(cfg, **{part: replace(getattr(cfg, part), **change)})
    with pytest.raises(ValueError, match=f'the release has no word for {part}.{next(iter(change))}'): release_config(cfg)

def test_roles_and_end_come_from_the_files_beside(folder, tmp_path):
    assert role_ids(tmp_path) == preset('7b').ids
    (tmp_path/'tokenizer_config.json').write_text(json.dumps(dict(added_tokens_decoder={
        '21': dict(content='<B_SYS>'), '22': dict(content='<C_Q>'), '23': dict(content='<C_A>'), '24': dict(content='<B_APE>')})))
    (tmp_path/'generation_config.json').write_text('{"eos_token_id": 20}')
    ids = role_ids(tmp_path)
    assert (ids.end, ids.system, ids.user, ids.assistant) == (20, 21, 22, 23)
    for f in folder.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    cfg = load_official(tmp_path).cfg
    assert (cfg.ids.user, cfg.ids.end, cfg.ids.frame) == (22, 20, 164)
    (tmp_path/'generation_config.json').write_text('{')
    with pytest.raises(ValueError, match='generation_config.json is no JSON'): load_official(tmp_path)

# folders

def test_load_save_load_keeps_every_bit(model, state, folder, tmp_path):
    save_official(model, tmp_path, 300_000)
    files = sorted(f.name for f in tmp_path.glob('*.safetensors'))
    index = json.loads((tmp_path/'model.safetensors.index.json').read_text())
    assert len(files) > 4 and sorted(set(index['weight_map'].values())) == files and not list(tmp_path.glob('*.part'))
    wrote = read(tmp_path)
    assert wrote.keys() == state.keys() == index['weight_map'].keys()
    assert all(torch.equal(wrote[k], state[k]) and wrote[k].dtype == state[k].dtype for k in state)
    assert index['metadata']['total_size'] == sum(v.numel()*4 for v in state.values())
    for name in files:
        with safe_open(tmp_path/name, 'pt') as f: assert all(index['weight_map'][k] == name for k in f.keys())
    again = load_official(tmp_path)
    assert again.cfg == model.cfg
    for k, v in tensors(model).items():
        if 'vocoder' not in k and 'phone_head' not in k: assert torch.equal(v, tensors(again)[k]), k

def test_half_precision_keeps_every_bit(tmp_path):
    low = {k: v.bfloat16() for k, v in weights(TINY).items()}
    save_official(load_official(write(tmp_path/'a', state=low)), tmp_path/'b')
    wrote = read(tmp_path/'b')
    assert all(torch.equal(wrote[k], v) and wrote[k].dtype == torch.bfloat16 for k, v in low.items())
    assert json.loads((tmp_path/'b'/'config.json').read_text())['torch_dtype'] == 'bfloat16'

def test_nothing_is_left_undefined(model):
    held = tensors(model)
    assert not any(v.is_meta for v in held.values()) and not model.training
    assert all(torch.isfinite(v).all() for v in held.values() if v.is_floating_point())
    assert all(b.started for b in model.tokenizer.rvq.books) and held['tokenizer.mel_mean'] == 0 and held['tokenizer.mel_std'] == 1
    assert (held['flow.mean'] == 0).all() and (held['flow.std'] == 1).all() and (held['flow.spread'] == 1).all()
    assert all(p.requires_grad for p in model.parameters())
    assert model.vocoder(torch.zeros(1, 80, 10)) is not None

def test_dtype_is_asked_for(folder):
    m = load_official(folder, torch.bfloat16)
    kinds = {k: v.dtype for k, v in m.named_parameters() if not k.startswith('vocoder.')}
    assert set(kinds.values()) == {torch.bfloat16}
    assert {b.embed.dtype for b in m.tokenizer.rvq.books} == {torch.float32}  # rounding would change the nearest entry
    for part in (m.tokenizer, m.flow): part.float()  # a mixed model hears, speaks and thinks
    with torch.no_grad():
        codes = m.tokenizer.encode(torch.randn(16000, generator=torch.Generator().manual_seed(5)))
        assert torch.isfinite(m.flow.sample(m.tokenizer.decode(codes[None]).hidden)).all()
        row = torch.cat([torch.full((1, 2, 8), -1), codes[None]], 1)
        assert m.hidden(dict(input_ids=torch.zeros(1, 15, dtype=torch.long), codes=row)).dtype == torch.bfloat16

def test_one_file_without_index(folder, state, tmp_path, model):
    save_file(state, tmp_path/'model.safetensors'); (tmp_path/'config.json').write_text(json.dumps(config(TINY)))
    assert torch.equal(load_official(tmp_path).llm.lm_head.weight, model.llm.lm_head.weight)

@pytest.mark.parametrize('change,message', [
    (lambda s: s.pop('model.layers.1.self_attn.W_pack.bias'), 'model.layers.1.self_attn.W_pack.bias is missing from the checkpoint'),
    (lambda s: s.update({'model.layers.2.mlp.up_proj.weight': torch.ones(96, 128)}), 'model.layers.2.mlp.up_proj.weight is no tensor'),
    (lambda s: s.update({'surprise.weight': torch.ones(3)}), 'surprise.weight is no tensor of this model'),
    (lambda s: s.update({'audio_head.headnorm.weight': torch.ones(64)}), r'audio_head.headnorm.weight is \(64,\), the config wants \(128,\)'),
    (lambda s: s.pop('audio_tokenizer.audio_model.positional_embedding'), 'audio_model.positional_embedding is missing')])
def test_a_wrong_tensor_is_named(tmp_path, change, message):
    state = weights(TINY); change(state)
    with pytest.raises(ValueError, match=message): load_official(write(tmp_path, state=state))

def test_a_wrong_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no config.json in'): load_official(tmp_path)
    write(tmp_path); third = tmp_path/'model-00003-of-00004.safetensors'; whole = third.read_bytes()
    third.write_bytes(whole[:len(whole)//2])
    with pytest.raises(ValueError, match='model-00003-of-00004.safetensors is damaged'): load_official(tmp_path)
    third.unlink()
    with pytest.raises(FileNotFoundError, match='model-00003-of-00004.safetensors is missing'): load_official(tmp_path)
    (tmp_path/'model.safetensors.index.json').unlink()
    with pytest.raises(FileNotFoundError, match='no model.safetensors.index.json in'): load_official(tmp_path)

def test_a_save_that_dies_leaves_the_old_one(model, tmp_path, monkeypatch):
    save_official(model, tmp_path, 300_000)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    other = load_official(tmp_path)
    with torch.no_grad(): other.llm.lm_head.weight.zero_()
    calls, real = [], release._write
    def dies(file, items):
        if calls: raise OSError('disk full')
        calls.append(file); real(file, items)
    monkeypatch.setattr(release, '_write', dies)
    with pytest.raises(OSError, match='disk full'): save_official(other, tmp_path, 300_000)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix != '.part'} == before
    monkeypatch.undo(); save_official(other, tmp_path)  # fewer shards: the old ones go
    assert len(list(tmp_path.glob('*.safetensors'))) == 1 and not list(tmp_path.glob('*.part'))
    assert (load_official(tmp_path).llm.lm_head.weight == 0).all()

def test_a_quantised_model_is_refused(model, tmp_path):
    other = load_official(write(tmp_path/'a')); w = other.llm.model.layers[0].mlp.up_proj
    w.weight = nn.Parameter(w.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match='mlp.up_proj.weight is torch.int8'): save_official(other, tmp_path/'b')

# memory

PEAK = '''
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from omni_lite.omni.official import load_released, tensors
from omni_lite.omni.release import _rest, OmniForCausalLM, config_from_release, load_official, save_official

def all_at_once(folder):
    state = {k: v.clone() for f in sorted(folder.glob('*.safetensors')) for k, v in load_file(f).items()}
    with torch.device('meta'): model = OmniForCausalLM(config_from_release(json.loads((folder/'config.json').read_text())))
    load_released(model, state); _rest(model)
    return model

def kilobytes(key): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))
def peak(f):
    open('/proc/self/clear_refs', 'w').write('5')  # forget the highest so far
    start = kilobytes('VmRSS'); out = f()
    return out, 1024*(kilobytes('VmHWM') - start)

folder, small, way = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
kept = load_official(small); save_official(kept, folder/'small')  # imports, first calls, the heap they leave
model, used = peak(lambda: (all_at_once if way == 'all at once' else load_official)(folder))
size = sum(v.numel()*v.itemsize for v in tensors(model).values())
_, saved = (0, 0) if way == 'all at once' else peak(lambda: save_official(model, folder/'again', 25_000_000))
print(json.dumps([size, used - size, saved]))
'''

@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='peak memory is read from /proc')
def test_memory_beside_the_model(folder, tmp_path):
    heavy = dict(TINY, hidden=256, ffn=5120, layers=9, heads=4, vocab=2000)
    write(tmp_path, heavy, shards=8)
    shard = max(f.stat().st_size for f in tmp_path.glob('*.safetensors'))
    def run(way):
        out = subprocess.run([sys.executable, '-c', PEAK, str(tmp_path), str(folder), way], capture_output=True, text=True)
        assert out.returncode == 0, out.stderr[-2000:]
        return json.loads(out.stdout)
    size, load, save = run('streamed')
    assert size > 150e6 and load < shard and save < shard, (size, shard, load, save)
    _, naive, _ = run('all at once')
    assert naive > 3*shard, 'the measure sees nothing'
