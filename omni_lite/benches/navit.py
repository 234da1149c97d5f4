"""Our eye and bridge against transformers' Qwen2-VL tower, and our eye against itself fed with padding: the same weights and
the same 16 pictures of mixed size, one thread."""
from omni_lite.bench import Case, FloorCase, bench, one_thread

__all__ = ['mixed_sizes', 'towers', 'padded', 'products']

def mixed_sizes(
    n:int=16, # pictures
    factor:int=28, # both sides are multiples of it
) -> list[tuple[int,int]]: # (height, width) in pixels, from 56x56 to 560x1120
    "Sizes whose widths and heights are each spread evenly over the octaves, and dealt to each other."
    step = lambda top, i: factor * round(2 * (top / 2) ** (i / (n - 1)))
    deal = [7*i % (n - 1) for i in range(n - 1)] + [n - 1]  # a permutation for n = 16; smallest and largest keep their place
    return [(step(20, j), step(40, i)) for i, j in enumerate(deal)]

def towers(
    dim:int, depth:int, num_heads:int, # width, blocks and heads of the eye
    ffn_dim:int, llm_dim:int=256, # inner width, a multiple of dim; width of the tokens
) -> tuple: # transformers' tower, our NaViT, our Projector
    "The same random weights three times."
    import torch
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig
    from omni_lite.vision.navit import NaViT, load_qwen2vl
    from omni_lite.vision.projector import Projector, load_bridge
    torch.manual_seed(0)
    theirs = Qwen2VisionTransformerPretrainedModel(Qwen2VLVisionConfig(
        depth=depth, embed_dim=dim, num_heads=num_heads, mlp_ratio=ffn_dim//dim, hidden_size=llm_dim)).eval()
    for p in theirs.parameters():
        if p.ndim == 1: torch.nn.init.normal_(p, p.mean().item(), .1)  # norms and biases, or a lost one would go unseen
    state = theirs.state_dict()
    return theirs, load_qwen2vl(NaViT(dim, depth, num_heads, ffn_dim), state).eval(), load_bridge(Projector(dim, llm_dim), state)

def padded(
    eye:'NaViT', values:'Tensor', # (N, P) patches of all pictures
    grids:list[tuple[int,int,int]], # (t, h, w) of each picture
) -> 'Tensor': # (N, D)
    "The same eye as a plain batch: every picture filled up to the longest, and a mask over the filling."
    import torch
    from omni_lite.layers import rope_angles
    from omni_lite.vision.navit import grid_positions, slice_lengths
    lengths = slice_lengths(grids, eye.merge)
    fill = lambda v: torch.nn.utils.rnn.pad_sequence(v.split(lengths), batch_first=True)  # (B, T, ...)
    x = fill(eye.patch_embed(values))
    real = fill(torch.ones(len(values), dtype=torch.bool, device=values.device))  # (B, T)
    angles = rope_angles(fill(grid_positions(grids, eye.merge, values.device)), eye.head_dim)
    return eye.net(x, real[:, None, None], angles)[real]

def products(
    eye:'NaViT', values:'Tensor', # (N, P) patches of all pictures
    grids:list[tuple[int,int,int]], # (t, h, w) of each picture
    rows:int=256, keys:int=512, # of attention at a time, so that a tile stays in the cache
) -> tuple: # () -> the matrix products that any such eye needs and nothing between them; billions of operations in them
    "The least work: the floor of the eye's time."
    import torch
    from omni_lite.vision.navit import slice_lengths
    attn, ffn, D = eye.net.blocks[0].attn, eye.net.blocks[0].ffn, eye.dim
    ws, lengths = [p.weight.mT for p in (attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj)], slice_lengths(grids, eye.merge)
    q = torch.randn(len(values), attn.num_heads, attn.head_dim).transpose(0, 1).contiguous()  # (H, N, K)
    def run():
        x = values @ eye.patch_embed.weight.mT
        for _ in eye.net.blocks:
            for w in ws: x @ w
            x @ ffn.fc1.weight.mT @ ffn.fc2.weight.mT
            for p in q.split(lengths, 1):
                for a in p.split(rows, 1):
                    for k in p.split(keys, 1): a @ k.mT @ k
    each = 8*D*D + 4*D*ffn.fc1.out_features
    return run, 2e-9*(len(values)*values.shape[1]*D) + 1e-9*len(eye.net.blocks)*(len(values)*each + 4*D*sum(n*n for n in lengths))

def _case(name, ours, anchor, floor=None, gflop=0.):
    ours, anchor = one_thread(ours), one_thread(anchor)
    off = (ours() - anchor()).abs().max().item()
    about, agree = f'{name}; largest difference {off:.0e}', lambda a, b: (a - b).abs().max().item() <= 1e-4
    return FloorCase(about, ours, anchor, agree, one_thread(floor), gflop) if floor else Case(about, ours, anchor, agree)

def _against_tower(name, grids, *sizes):
    import torch
    theirs, eye, bridge = towers(*sizes)
    x, g = torch.randn(sum(h*w for _, h, w in grids), 1176), torch.tensor(grids)
    return _case(f'{name}, {len(grids)} pictures, {len(x)} patches', lambda: bridge(eye(x, grids)), lambda: theirs(x, g).pooler_output,
                 *products(eye, x, grids))

def _folded(name, grids, dim, depth, num_heads, ffn_dim):
    import torch
    from omni_lite.vision.navit import NaViT, load_qwen2vl
    theirs, _, bridge = towers(dim, depth, num_heads, ffn_dim)
    eye = load_qwen2vl(NaViT(dim, depth, num_heads, ffn_dim, temporal=1), theirs.state_dict()).eval()
    x, g = torch.randn(sum(h*w for _, h, w in grids), 3, 1, 196), torch.tensor(grids)
    once, twice = x.flatten(1), x.repeat(1, 1, 2, 1).flatten(1)  # the reference shows a still picture twice
    return _case(name, lambda: bridge(eye(once, grids)), lambda: theirs(twice, g).pooler_output)

def _against_padding(grids, *sizes):
    import torch
    eye, x = towers(*sizes)[1], torch.randn(sum(h*w for _, h, w in grids), 1176)
    return _case(f'{sizes[0]} wide, {sizes[1]} block, against our eye fed with padding', lambda: eye(x, grids),
                 lambda: padded(eye, x, grids))

@bench('navit', 'the eye and bridge on 16 pictures from 56x56 to 560x1120, one thread',
       "transformers' Qwen2-VL tower, where no other is named")
def cases() -> list: # of Case
    "Nano's width, with and without folding; against padding; the real width with two blocks."
    grids = [(1, h//14, w//14) for h, w in mixed_sizes()]
    return [_against_tower('128 wide (nano), 4 blocks', grids, 128, 4, 4, 384),
            _folded('the same with the patch kernel folded over time, as nano has it', grids, 128, 4, 4, 384),
            _against_padding(grids, 128, 1, 4, 384),
            _against_tower('1280 wide (real), 2 blocks', grids, 1280, 2, 16, 5120)]
