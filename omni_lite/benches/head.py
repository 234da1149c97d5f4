"""Drawing a frame with the cached audio head against the released loop, which runs the whole head over all its positions once
per level; and the three kinds of heads against each other. Same weights on both sides, one thread, batch of one."""
from omni_lite.bench import Case, bench, one_thread
from omni_lite.config import HeadConfig, preset, replace

__all__ = ['RELEASED', 'eight_passes', 'same_draw', 'parts', 'loop_case', 'kind_case', 'train_case', 'cases']

RELEASED = (3584, (8192, 4096, 2048) + (1024,)*5, HeadConfig(3584, 1, 28, 7168, official=True))  # one of its three layers: 2.4 GB

def eight_passes(
    head:'DepthHead', emb:'AudioEmbedding', # the head; the shared tables
    hidden:'Tensor', # (N, D)
) -> 'Tensor': # (N, L) codes
    "The released loop: pass i runs all positions and keeps the likeliest code of level i."
    import torch
    codes = torch.zeros(len(hidden), len(head.sizes), dtype=torch.long)
    for i, size in enumerate(head.sizes): codes[:, i] = head(hidden, codes, emb)[i][:, :size + (i == 0)].argmax(-1)
    return codes

def same_draw(
    head:'DepthHead', emb:'AudioEmbedding', hidden:'Tensor', # as above
    a:'Tensor', b:'Tensor', # (N, L) codes of either side
) -> bool: # equal up to the first level whose two codes are as likely as fp32 can tell
    "Do both sides draw the same codes?"
    for i, (x, y) in enumerate(zip(a.T, b.T)):
        if x.equal(y): continue
        logits = head(hidden, a, emb)[i].detach()
        return bool((logits.gather(1, x[:, None]) - logits.gather(1, y[:, None])).abs().max() < 1e-4 * logits.abs().max())
    return True

def parts(
    dim:int, sizes:tuple, cfg:HeadConfig, # D, width of the language model; entries per level; sizes of the head
) -> tuple: # head, tables, hidden state (1, D)
    "A head with random weights, and something for it to say."
    import torch
    from omni_lite.omni.depth_head import AudioEmbedding
    from omni_lite.omni.other_heads import build_head
    torch.manual_seed(0)
    emb = AudioEmbedding(sizes, dim)
    for t in emb.tables: t.weight.data.mul_(50.)  # as large as the hidden state
    return build_head(dim, sizes, cfg).eval(), emb, torch.randn(1, dim)

def loop_case(
    name:str, dim:int, sizes:tuple, cfg:HeadConfig, # of the row; as for `parts`
) -> Case:
    "Cached sampling against the released loop."
    head, emb, hidden = parts(dim, sizes, cfg)
    return Case(name, one_thread(lambda: head.sample(emb, hidden, 0.)), one_thread(lambda: eight_passes(head, emb, hidden)),
                lambda a, b: same_draw(head, emb, hidden, a, b))

def kind_case(
    name:str, dim:int, sizes:tuple, ours:HeadConfig, anchor:HeadConfig, # of the row; D; entries per level; the two heads
) -> Case:
    "One kind of head against another: one row of codes, drawn as in use."
    import torch
    def draw(cfg):
        head, emb, hidden = parts(dim, sizes, cfg); gen = torch.Generator().manual_seed(0)
        return one_thread(lambda: head.sample(emb, hidden, .5, 5, gen, .85))
    return Case(name, draw(ours), draw(anchor), lambda a, b: a.shape == b.shape)

def train_case(
    name:str, dim:int, sizes:tuple, ours:HeadConfig, anchor:HeadConfig, # as for `kind_case`
    rows:int=200, # in a step
) -> Case:
    "One kind of head against another: loss and gradient of a batch."
    import torch
    def step(cfg):
        head, emb, _ = parts(dim, sizes, cfg)
        hidden, codes = torch.randn(rows, dim), torch.stack([torch.randint(0, k, (rows,)) for k in sizes], -1)
        def _step():
            loss, levels = head.loss(emb, hidden, codes)
            loss.backward()
            return levels
        return one_thread(_step, True)
    return Case(name, step(ours), step(anchor), lambda a, b: a.shape == b.shape)

@bench('head', 'one frame of codes from a hidden state', 'the released loop of full passes over all positions; other heads')
def cases() -> list: # of Case
    "Nano's sizes, the released widths, and the three kinds."
    c = preset('nano'); size, depth = (c.llm.dim, c.audio.codebook_sizes), c.head
    parallel, delay = (replace(depth, kind=k) for k in ('parallel', 'delay'))
    return [loop_case('cached against full passes, nano', *size, depth),
            loop_case('cached against full passes, released widths, 1 layer', *RELEASED),
            kind_case('a row of parallel heads against depth, nano', *size, parallel, depth),
            kind_case('a row of the delay pattern against depth, nano', *size, delay, depth),
            kind_case('a row of the delay pattern against parallel heads, nano', *size, delay, parallel),
            train_case('training step of parallel heads against depth, nano, 200 frames', *size, parallel, depth),
            train_case('training step of the delay pattern against depth, nano, 200 rows', *size, delay, depth)]
