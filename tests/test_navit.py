"The quick road of the eye: equal to transformers' tower, grouped without masks, and the names of the released checkpoint."
import pytest
import torch
from einops import rearrange
from omni_lite.benches import navit as bench
from omni_lite.config import preset
from omni_lite.layers import rope_angles, rotate
from omni_lite.vision import navit
from omni_lite.vision.navit import NaViT, attention_map, eye_names, from_qwen2vl, grid_positions, load_qwen2vl, slice_lengths, to_qwen2vl
from omni_lite.vision.projector import Projector, from_released, load_bridge, to_released, token_counts

torch.set_num_threads(1)
MIXED = [(1, 4, 6), (1, 10, 12), (1, 6, 4), (2, 4, 4), (1, 2, 2), (1, 8, 2), (1, 2, 12), (1, 12, 10)]

def rows(grids, temporal=1, seed=0):
    return torch.randn(sum(slice_lengths(grids)), 588*temporal, generator=torch.Generator().manual_seed(seed))

def tower(dim=64, depth=2, heads=4, ratio=2, llm=48):
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig
    torch.manual_seed(0)
    net = Qwen2VisionTransformerPretrainedModel(
        Qwen2VLVisionConfig(depth=depth, embed_dim=dim, num_heads=heads, mlp_ratio=ratio, hidden_size=llm)).eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=.1)  # biases too, or a lost one would go unseen
    return net

@pytest.fixture
def calls(monkeypatch):
    "Shapes and masks of every attention call."
    real, seen = navit.F.scaled_dot_product_attention, []
    def spy(q, k, v, attn_mask=None, **kw):
        seen.append((tuple(q.shape), attn_mask)); return real(q, k, v, attn_mask, **kw)
    monkeypatch.setattr(navit.F, 'scaled_dot_product_attention', spy)
    return seen

# equal to the real one

@pytest.mark.parametrize('row', [1, 30, 10_000])
@torch.inference_mode()
def test_eye_and_bridge_equal_qwen2vl_however_rows_are_cut(row, monkeypatch):
    monkeypatch.setattr(navit, 'ROW', row)
    net, x = tower(), rows(MIXED, 2)
    eye, bridge = load_qwen2vl(NaViT(64, 2, 4, 128), net.state_dict()), load_bridge(Projector(64, 48), net.state_dict())
    want, got = net(x, torch.tensor(MIXED)), eye(x, MIXED)
    assert (got - want.last_hidden_state).abs().max() <= 1e-4 and (bridge(got) - want.pooler_output).abs().max() <= 1e-4
    assert len(bridge(got)) == sum(token_counts(MIXED))

@torch.inference_mode()
def test_a_large_grid_equals_qwen2vl():
    net, grids = tower(32, 1, 2), [(1, 40, 80), (1, 4, 4)]  # 1,120 x 560 pixels beside 56 x 56
    x = rows(grids, 2)
    got = load_qwen2vl(NaViT(32, 1, 2, 64), net.state_dict())(x, grids)
    assert (got - net(x, torch.tensor(grids)).last_hidden_state).abs().max() <= 1e-4

@pytest.mark.parametrize('dtype,eps', [(torch.float64, 1e-5), (torch.bfloat16, .1)])
@torch.inference_mode()
def test_other_precisions(dtype, eps):
    torch.manual_seed(0); eye, x = NaViT(32, 2, 2, 64, temporal=1), rows(MIXED)
    want, got = eye(x, MIXED), eye.to(dtype)(x, MIXED)
    assert got.dtype == dtype and (got.float() - want).abs().max() <= eps

# no mask, no padding

@torch.inference_mode()
def test_pictures_of_one_length_share_a_call_and_none_is_masked(calls):
    eye = NaViT(32, 3, 2, 64, temporal=1); eye(rows(MIXED), MIXED)
    assert all(mask is None for _, mask in calls)
    count = lambda n: slice_lengths(MIXED).count(n)
    assert sorted(s for s, _ in calls) == sorted([(count(n), 2, n, 16) for n in set(slice_lengths(MIXED))] * 3)

def test_training_runs_all_patches_in_one_row(calls, monkeypatch):
    monkeypatch.setattr(navit, 'ROW', 1)
    NaViT(32, 1, 2, 64, temporal=1)(rows([(1, 4, 4)]*6), [(1, 4, 4)]*6)
    assert [s for s, _ in calls] == [(6, 2, 16, 16)]

@pytest.mark.parametrize('size', [1, 40, 100, 10_000])
def test_rows_hold_every_picture_once_and_close_in_time(size):
    lengths = slice_lengths(MIXED); cut = navit._rows(lengths, size)
    assert sorted(sum(cut, [])) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row[:-1]) < size for row in cut)
    ordered = [lengths[i] for i in sum(cut, [])]
    assert ordered == sorted(ordered)

@torch.inference_mode()
def test_work_is_linear_in_pictures_and_at_most_square_in_patches():
    from torch.utils.flop_counter import FlopCounterMode
    eye = NaViT(32, 2, 2, 64, temporal=1)
    sdpa = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    def flops(grids):
        count = lambda q, k, v, *args, out_shape=None, **kw: 4 * q[0] * q[1] * q[2] * k[2] * q[3]
        with FlopCounterMode(display=False, custom_mapping={sdpa: count}) as f: eye(rows(grids), grids)
        return f.get_total_flops()
    one = flops([(1, 8, 8)])
    assert flops([(1, 8, 8), (1, 4, 16)]*8) == 16*one
    assert flops(MIXED) == sum(t * flops([(1, h, w)]) for t, h, w in MIXED)
    assert 4*one < flops([(1, 16, 16)]) < 16*one

# tables that are kept

def test_a_look_without_gradients_does_not_spoil_training():
    navit._table.cache_clear(); eye = NaViT(32, 1, 2, 64, temporal=1)
    with torch.inference_mode(): eye(rows(MIXED), MIXED)
    eye(rows(MIXED), MIXED).sum().backward()
    assert eye.net.blocks[0].attn.q_proj.weight.grad.abs().sum() > 0

def test_tables_are_kept_per_shape_and_device():
    navit._table.cache_clear(); eye = NaViT(32, 2, 2, 64, temporal=1)
    with torch.device('meta'):
        ghost = NaViT(32, 2, 2, 64, temporal=1); out = ghost(torch.empty(24, 588), [(1, 4, 6)])
    assert out.device.type == 'meta' and eye(rows([(1, 4, 6)]), [(1, 4, 6)]).isfinite().all()
    eye(rows([(1, 4, 6)]*5), [(1, 4, 6)]*5)
    assert navit._table.cache_info().misses == 2

# where attention goes

@pytest.mark.parametrize('layer', [0, 1, -1])
@torch.inference_mode()
def test_attention_map_is_the_softmax_that_the_eye_uses(layer):
    torch.manual_seed(0); eye, (_, h, w) = NaViT(32, 2, 2, 64, temporal=1), (grid := (1, 6, 8))
    x, at = rows([grid])*3, (3, 5)
    maps = attention_map(eye, x, grid, at, layer)
    assert maps.shape == (2, h, w) and torch.allclose(maps.sum((1, 2)), torch.ones(2))
    angles, y = rope_angles(grid_positions([grid]), 16), eye.patch_embed(x)[None]
    for b in eye.net.blocks[:range(2)[layer]]: y = b(y, None, angles)
    b = eye.net.blocks[layer]; heads = lambda p: rearrange(p(b.norm1(y)), '1 n (h k) -> 1 h n k', h=2)
    weights = (rotate(heads(b.attn.q_proj), angles) @ rotate(heads(b.attn.k_proj), angles).mT / 4).softmax(-1)[0]
    places = [tuple(p) for p in grid_positions([grid]).tolist()]
    want = weights[:, places.index(at)]
    assert torch.allclose(torch.stack([maps[:, r, c] for r, c in places], 1), want, atol=1e-6)

def test_attention_map_refuses():
    eye, x = NaViT(32, 1, 2, 64, temporal=1), rows([(1, 4, 4)])
    for at in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match='not on the still grid'): attention_map(eye, x, (1, 4, 4), at)
    with pytest.raises(ValueError, match='not on the still grid'): attention_map(eye, rows([(2, 4, 4)]), (2, 4, 4), (0, 0))

# names

BRANCH = {'patch_embed.proj.weight': (1280, 3, 2, 14, 14)}  # shapes counted in the released checkpoint
BLOCK = dict(zip(['norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias', 'attn.qkv.weight', 'attn.qkv.bias', 'attn.proj.weight',
                  'attn.proj.bias', 'mlp.fc1.weight', 'mlp.fc1.bias', 'mlp.fc2.weight', 'mlp.fc2.bias'],
                 [(1280,)]*4 + [(3840, 1280), (3840,), (1280, 1280), (1280,), (5120, 1280), (5120,), (1280, 5120), (1280,)]))
BRIDGE = {'ln_q.weight': (1280,), 'ln_q.bias': (1280,), 'mlp.0.weight': (5120, 5120), 'mlp.0.bias': (5120,),
          'mlp.2.weight': (3584, 5120), 'mlp.2.bias': (3584,)}
RELEASED = ({f'model.visual_model.{k}': s for k, s in BRANCH.items()} | {f'model.visual_bridge_model.{k}': s for k, s in BRIDGE.items()}
            | {f'model.visual_model.blocks.{i}.{k}': s for i in range(32) for k, s in BLOCK.items()})

def branch(name):
    c, d = preset(name).vision, preset(name).llm.dim
    return torch.nn.ModuleDict(dict(eye=NaViT(c.dim, c.depth, c.num_heads, c.ffn_dim, c.patch, c.temporal, merge=c.merge),
                                    bridge=Projector(c.dim, d, c.merge)))

def test_the_7b_branch_has_the_names_and_shapes_of_the_release():
    with torch.device('meta'): ours = branch('7b').state_dict()
    named = to_released(ours | {'llm.lm_head.weight': torch.empty(1, device='meta')})
    assert {k: tuple(v.shape) for k, v in named.items()} == RELEASED
    back = from_released({k: torch.empty(s, device='meta') for k, s in RELEASED.items()})
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in ours.items()}

@pytest.mark.parametrize('name', ['tiny', 'lite'])
def test_a_branch_survives_the_trip(name):
    torch.manual_seed(0); model = branch(name); state = model.state_dict()
    back = from_released(to_released(state) | {'model.embed_tokens.weight': torch.ones(1)}, model.eye.temporal)
    assert set(back) == set(state)
    assert all(torch.allclose(back[k], state[k], atol=1e-7) for k in state)

def test_qwen2vl_names_become_ours():
    net = tower(); state = {f'model.visual.{k}': v for k, v in net.state_dict().items()} | {'lm_head.weight': torch.ones(1)}
    ours = from_released(state)
    assert set(ours) == {f'eye.{k}' for k in NaViT(64, 2, 4, 128).state_dict()} | {f'bridge.{k}' for k in Projector(64, 48).state_dict()}
    again = to_released(ours)
    for k, v in net.state_dict().items():
        k = k.replace('merger.', 'model.visual_bridge_model.') if k.startswith('merger.') else f'model.visual_model.{k}'
        assert torch.equal(again.pop(k), v)
    assert not again

def test_one_half_alone():
    eye, bridge = NaViT(32, 1, 2, 64), Projector(32, 16)
    assert set(to_released({f'eye.{k}': v for k, v in eye.state_dict().items()})) == set(to_qwen2vl(eye))
    assert set(from_released({f'model.visual_bridge_model.{k}': v for k, v in bridge.state_dict().items()})) == \
        {f'bridge.{k}' for k in bridge.state_dict()}

def test_names_refuse():
    for f in (to_released, from_released):
        with pytest.raises(ValueError, match='state dict'): f({'lm_head.weight': torch.ones(1)})
    with pytest.raises(ValueError, match='patch_embed'): eye_names({})
    with pytest.raises(ValueError, match='do not fit'): load_bridge(Projector(64, 49), tower().state_dict())

def test_own_names_stay():
    names = set(NaViT(32, 1, 2, 64).state_dict())
    linear = [f'attn.{p}_proj' for p in ('q', 'k', 'v', 'out')] + ['ffn.fc1', 'ffn.fc2', 'norm1', 'norm2']
    assert names == {'patch_embed.weight'} | {f'net.blocks.0.{l}.{p}' for l in linear for p in ('weight', 'bias')}
    assert set(from_qwen2vl(to_qwen2vl(NaViT(32, 1, 2, 64)))) == names

# the bench compares equal work

def test_mixed_sizes():
    sizes = bench.mixed_sizes()
    assert len(sizes) == 16 and sizes[0] == (56, 56) and sizes[-1] == (560, 1120)
    assert all(28*2 <= h <= 560 and 56 <= w <= 1120 and h % 28 == w % 28 == 0 for h, w in sizes)
    assert len({h for h, _ in sizes}) > 10 < len({w for _, w in sizes})

@torch.inference_mode()
def test_padding_changes_no_number():
    eye = NaViT(32, 2, 2, 64, temporal=1); x = rows(MIXED)
    assert (bench.padded(eye, x, MIXED) - eye(x, MIXED)).abs().max() <= 1e-5

@pytest.mark.parametrize('make,name', [(bench._against_tower, ['toy']), (bench._folded, ['toy']), (bench._against_padding, [])])
def test_cases_agree_and_print_the_difference(make, name):
    case = make(*name, MIXED[:3], 32, 1, 2, 64); out = case.ours()
    assert case.agree(out, case.anchor()) and not case.agree(out, case.anchor() + .01) and 'largest difference' in case.name
    assert out.shape[0] in (sum(slice_lengths(MIXED[:3])), sum(token_counts(MIXED[:3])))
