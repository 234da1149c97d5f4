"""Int8 weights of the language model: rounding, the layer, whole models, saving."""
import copy

import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from torch import nn

from omni_lite.config import preset, replace
from omni_lite.omni.decoder import decoder_for
from omni_lite.omni.int8 import Int8Embedding, Int8Linear, fused, int8_product, megabytes, quality_loss, quantize_llm, rounded_copy, to_int8
from omni_lite.omni.model import OmniForCausalLM, llm_sizes

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0); torch.set_num_threads(1)

def relative(a, b): return ((a - b).norm() / b.norm().clamp(min=1e-9)).item()

def causal(tie=False, kind='Llama', width=64):
    cfg = getattr(transformers, kind + 'Config')(vocab_size=96, hidden_size=width, intermediate_size=2*width, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tie, initializer_range=.1, bos_token_id=0, eos_token_id=0)
    return getattr(transformers, kind + 'ForCausalLM')(cfg).eval()

# ---- rounding

@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 70), st.floats(-12, 6), st.integers(0, 10**6))
def test_no_weight_is_off_by_more_than_half_a_step(n, k, exponent, seed):
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    rows, step = to_int8(w)
    assert rows.dtype == torch.int8 and int(rows.min()) >= -127 and step.dtype == torch.bfloat16
    # a step was rounded to bfloat16, so the largest weights may lie up to 127 * 2**-9 steps beyond the last one
    assert ((rows * step.float()[:, None] - w).abs() <= .76 * step.float()[:, None]).all()

def test_a_row_of_zeros_stays_zero():
    w = torch.randn(3, 32); w[1] = 0
    assert (to_int8(w)[0][1] == 0).all() and to_int8(w)[1].isfinite().all()

def test_rows_do_not_disturb_each_other():
    w = torch.randn(5, 32); loud = w.clone(); loud[2] *= 1000
    a, b = to_int8(w), to_int8(loud)
    keep = torch.tensor([0, 1, 3, 4])
    assert torch.equal(a[0][keep], b[0][keep]) and torch.equal(a[1][keep], b[1][keep])

# ---- the product

@pytest.mark.parametrize('k', [1, 8, 31, 32, 33, 64, 100, 576, 1000])
@pytest.mark.parametrize('b', [1, 2, 8, 9, 40])
def test_product_at_all_widths(k, b):
    "Widths that the kernel cannot do are unpacked, not read beyond their end."
    w, x = torch.randn(17, k), torch.randn(b, k)
    rows, step = to_int8(w)
    assert relative(int8_product(x, rows, step), x @ (rows * step.float()[:, None]).T) < .02
    assert fused(x, rows) == (k % 32 == 0 and b <= 8)

@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_shape_are_kept(dtype):
    lin = nn.Linear(64, 48); low = Int8Linear(*to_int8(lin.weight.detach()), lin.bias)
    for shape in ((64,), (1, 64), (2, 3, 64), (0, 64)):
        x = torch.randn(shape).to(dtype); y = low(x)
        assert y.dtype == dtype and y.shape == (*shape[:-1], 48)
        if x.numel(): assert relative(y.float(), lin(x.float())) < .03

def test_a_gradient_reaches_the_input():
    "A bridge can be trained against a rounded language model."
    lin = nn.Linear(64, 48, bias=False); low = Int8Linear(*to_int8(lin.weight.detach()))
    x = torch.randn(2, 64, requires_grad=True); low(x).sum().backward()
    assert relative(x.grad, lin.weight.sum(0).expand(2, -1)) < .05

# ---- whole models

@pytest.mark.parametrize('kind', ['Llama', 'Qwen2'])
@pytest.mark.parametrize('tie', [False, True])
def test_outputs_stay_and_memory_shrinks(kind, tie):
    llm = causal(tie, kind); ids = torch.randint(0, 96, (2, 20)); before = megabytes(llm)
    with torch.no_grad():
        want = llm(ids).logits; low = quantize_llm(llm); got = low(ids).logits
    assert low is llm and relative(got, want) < .05 and megabytes(llm) < .32 * before
    assert not [n for n, p in llm.named_modules() if type(p) in (nn.Linear, nn.Embedding)]
    assert (llm.lm_head.rows.data_ptr() == llm.model.embed_tokens.rows.data_ptr()) == tie  # one table, two readers

def test_twice_is_once():
    llm = quantize_llm(causal()); rows = {k: v.clone() for k, v in llm.named_buffers()}
    quantize_llm(llm)
    assert all(torch.equal(v, rows[k]) for k, v in llm.named_buffers())

def test_cached_steps_equal_the_whole():
    llm = quantize_llm(causal(True)); ids = torch.randint(0, 96, (1, 12))
    with torch.no_grad():
        x = llm.get_input_embeddings()(ids); d = decoder_for(llm)
        one_by_one = torch.stack([d.step(x[:, i:i + 1])[0] for i in range(12)])
        whole = llm.model(inputs_embeds=x).last_hidden_state[0]
    assert relative(one_by_one, whole) < .02

def test_a_copy_leaves_the_original_and_shares_the_rest():
    llm = causal(True); state = copy.deepcopy(llm.state_dict()); low = rounded_copy(llm)
    assert type(llm.lm_head) is nn.Linear and all(torch.equal(v, state[k]) for k, v in llm.state_dict().items())
    assert type(low.lm_head) is Int8Linear and type(low.model.embed_tokens) is Int8Embedding
    assert low.model.norm.weight is llm.model.norm.weight

# ---- an omni model

def omni(tie=False):
    llm, cfg = causal(tie), preset('tiny')
    return OmniForCausalLM(replace(cfg, llm=llm_sizes(llm.config)), llm).eval()

def batch(n=3):
    ids = torch.randint(20, 90, (n, 14)); codes = torch.full((n, 14, 8), -1); codes[:, 4:8] = torch.randint(0, 16, (n, 4, 8))
    code_labels = torch.full_like(codes, -100); code_labels[:, 5:8] = codes[:, 5:8]
    labels = torch.full_like(ids, -100); labels[:, 9:] = ids[:, 9:]
    return dict(input_ids=ids, codes=codes, see=torch.zeros(n, 14, dtype=torch.bool), labels=labels, code_labels=code_labels)

@pytest.mark.parametrize('tie', [False, True])
def test_saves_as_an_ordinary_checkpoint(tmp_path, tie):
    m, b = quantize_llm(omni(tie)), batch(); m.save_pretrained(tmp_path)
    again = OmniForCausalLM.from_pretrained(tmp_path)
    assert type(again.llm.lm_head) is nn.Linear
    with torch.no_grad(): assert relative(again.hidden(b), m.hidden(b)) < .01

def test_only_the_language_model_changes():
    m = omni(); others = {k: v.clone() for k, v in m.state_dict().items() if not k.startswith('llm.')}
    quantize_llm(m)
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in others.items())
    assert not [n for n, p in m.named_modules() if isinstance(p, Int8Linear) and not n.startswith('llm.')]

def test_quality_is_measured_and_the_model_left_alone(capsys):
    m, bs = omni(), [batch(), batch(2)]
    with torch.no_grad(): want = [m.losses(b)['text'].item() for b in bs]
    rows = {r.what: r for r in quality_loss(m, bs)}
    assert rows['text loss'].before == pytest.approx(sum(want)/2, rel=1e-5) and type(m.llm.lm_head) is nn.Linear
    assert rows['text loss'].after != rows['text loss'].before and rows['text loss'].after == pytest.approx(rows['text loss'].before, rel=.05)
    assert {'audio loss', 'same next token', 'MiB', 'ms per step'} <= rows.keys() and rows['MiB'].after < .4*rows['MiB'].before
    assert all(k in capsys.readouterr().out for k in ['text loss']) and not quality_loss(m, bs, show=False) == []
    assert capsys.readouterr().out == ''

def test_what_cannot_be_done_is_said_in_a_sentence():
    with pytest.raises(ValueError, match='on meta: call model.cpu'): quantize_llm(omni().to('meta'))
    low = quantize_llm(omni())
    with pytest.raises(ValueError, match='load the weights first'): low.load_state_dict(omni().state_dict())
