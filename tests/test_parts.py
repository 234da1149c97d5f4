"""Models put together from folders of other models: tiny random ones, written by transformers."""
import json, shutil
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel, Qwen2VLVisionConfig

from omni_lite.config import preset
from omni_lite.omni import parts as P
from omni_lite.config import Sampling
from omni_lite.omni.model import OmniForCausalLM, count_parameters
from omni_lite.omni.parts import assemble, part_folder, part_state
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import SPECIALS

SIZES = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             bos_token_id=0, eos_token_id=0)
TINY = preset('tiny')

def tokenizer(specials=()):
    "Byte-level, without our tags: what a pretrained model brings."
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(['the cat sees a red ball.'], trainers.BpeTrainer(
        vocab_size=290, special_tokens=list(specials), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t)

def causal(kind, vocab, tie):
    cfg, cls = {'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM),
                'qwen2': (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
                'gemma': (transformers.GemmaConfig, transformers.GemmaForCausalLM)}[kind]
    return cls(cfg(vocab_size=vocab, tie_word_embeddings=tie, **SIZES, **(dict(head_dim=12) if kind == 'gemma' else {}))).eval()

def whisper(width=32):
    return transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(
        vocab_size=64, d_model=width, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None)).eval()

def qwen_vl(width=48):
    return transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(
        vision_config=dict(depth=2, embed_dim=32, num_heads=2, hidden_size=width),
        text_config=dict(SIZES, hidden_size=width, vocab_size=64))).eval()

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    torch.manual_seed(0); torch.set_num_threads(1)
    d = tmp_path_factory.mktemp('shop'); tok = tokenizer()
    for kind, tie in (('llama', True), ('qwen2', False), ('gemma', True)):
        causal(kind, len(tok), tie).save_pretrained(d/kind); tok.save_pretrained(d/kind)
    whisper().save_pretrained(d/'ear'); qwen_vl().save_pretrained(d/'eye')
    return d

@pytest.fixture(scope='module')
def whole(shop): return assemble(shop/'llama', shop/'ear', shop/'eye', cfg=TINY)

def source(folder): return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

# ---- the same numbers as the source

@pytest.mark.parametrize('kind', ['llama', 'qwen2', 'gemma'])
def test_text_logits_are_the_source_s(shop, kind):
    made, want = assemble(shop/kind, cfg=TINY), source(shop/kind)
    ids = torch.randint(0, want.config.vocab_size, (2, 11))
    with torch.no_grad():
        assert torch.allclose(made.model.llm(ids).logits[..., :want.config.vocab_size], want(ids).logits, atol=1e-5)
        h = made.model.hidden(dict(input_ids=ids))
        assert torch.allclose(made.model.llm.lm_head(h)[..., :want.config.vocab_size], want(ids).logits, atol=1e-5)

def test_ear_is_the_source_s(shop, whole):
    theirs, mel = whisper(), torch.randn(1, 80, 3000)
    theirs.load_state_dict(transformers.WhisperForConditionalGeneration.from_pretrained(shop/'ear').state_dict())
    with torch.no_grad(): want, got = theirs.model.encoder(mel).last_hidden_state, whole.model.tokenizer.encoder(mel)
    assert torch.allclose(got, want, atol=1e-4)

def test_eye_and_bridge_are_the_source_s(shop, whole):
    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(shop/'eye').eval().model.visual
    x, grids = torch.randn(40, 1176), [(1, 4, 4), (1, 2, 4), (1, 4, 4)]
    with torch.no_grad():
        want, seen = theirs(x, torch.tensor(grids)), whole.model.eye(x, grids)
        assert torch.allclose(seen, want.last_hidden_state, atol=1e-4)
        assert torch.allclose(whole.model.bridge(seen), want.pooler_output, atol=1e-4)

def test_sizes_follow_the_parts(whole):
    c = whole.model.cfg
    assert (c.audio.dim, c.audio.encoder_layers, c.audio.n_mels, c.audio.ffn_dim) == (32, 2, 80, 64)
    assert (c.vision.dim, c.vision.depth, c.vision.temporal, c.vision.merge) == (32, 2, 2, 2)
    assert c.llm.dim == 48 and json.loads(c.llm.backbone)['model_type'] == 'llama' and c.audio.codebook_sizes == TINY.audio.codebook_sizes

# ---- the tower alone, shards, half precision, another width

def test_a_tower_alone(shop, tmp_path):
    tower = Qwen2VisionTransformerPretrainedModel(Qwen2VLVisionConfig(depth=2, embed_dim=32, num_heads=2, hidden_size=48)).eval()
    tower.save_pretrained(tmp_path)
    made, x = assemble(shop/'qwen2', eye=tmp_path, cfg=TINY), torch.randn(16, 1176)
    with torch.no_grad():
        assert torch.allclose(made.model.eye(x, [(1, 4, 4)]), tower(x, torch.tensor([[1, 4, 4]])).last_hidden_state, atol=1e-4)
    assert {p.part for p in made.parts if p.state == 'taken'} == {'language model', 'eye', 'bridge'}

def test_a_bridge_of_another_width_is_new(shop, tmp_path):
    qwen_vl(64).save_pretrained(tmp_path)
    made = assemble(shop/'llama', eye=tmp_path, cfg=TINY)
    assert {p.part: p.state for p in made.parts}['bridge'] == 'new' and {p.part: p.state for p in made.parts}['eye'] == 'taken'

def test_shards_and_half_precision(shop, tmp_path):
    w = whisper(); w.save_pretrained(tmp_path/'one'); w.half().save_pretrained(tmp_path/'many', max_shard_size='40KB')
    assert len(list((tmp_path/'many').glob('*.safetensors'))) > 2
    prefix = ('model.encoder.', 'encoder.')
    one, many = part_state(tmp_path/'one', prefix), part_state(tmp_path/'many', prefix)
    assert one.keys() == many.keys() and all(v.dtype == torch.float32 and torch.allclose(v, many[k], atol=1e-3) for k, v in one.items())

def test_a_second_copy_in_another_precision_is_passed_over(shop, tmp_path):
    shutil.copytree(shop/'ear', tmp_path/'ear')
    save_file({k: v*0 for k, v in load_file(shop/'ear'/'model.safetensors').items()}, tmp_path/'ear'/'model.fp32.safetensors')
    a, b = (part_state(d/'ear', ('model.encoder.',)) for d in (shop, tmp_path))
    assert all(torch.equal(v, b[k]) for k, v in a.items())

# ---- tags

@pytest.mark.parametrize('specials,new', [((), 15), (('<|endoftext|>',), 14)])
def test_tags_are_added_once_and_words_keep_their_ids(tmp_path, specials, new):
    tok = tokenizer(specials); words = tok.get_vocab()
    causal('qwen2', len(tok) + 100, False).save_pretrained(tmp_path); tok.save_pretrained(tmp_path)  # rows to spare, as Qwen has
    made = assemble(tmp_path, cfg=TINY)
    assert made.model.cfg.llm.vocab_size == len(words) + 100  # no row was cut or added
    now = made.processor.tok.get_vocab()
    assert {k: now[k] for k in words} == words and len(now) == len(words) + new
    assert made.model.cfg.ids == P.token_ids(made.processor.tok)

def test_a_new_tag_never_stands_out(whole):
    "A row near the mean of all rows gets less than its share, at any position."
    m, n = whole.model, len(tokenizer())
    with torch.no_grad(): p = m.llm(torch.randint(0, n, (4, 32))).logits.softmax(-1)
    assert p[..., n:].max() < 3/n and p[..., n:].mean() <= 1/n

def test_what_users_type_is_no_tag(whole):
    tok = whole.processor.tok
    row = whole.processor.apply_chat_template([dict(role='user', content=f'hi {SPECIALS[3]} yes')])
    assert (row.ids == tok.convert_tokens_to_ids(SPECIALS[3])).sum() == 1  # the one that asks for the answer

# ---- an ordinary model

@pytest.mark.parametrize('kind', ['llama', 'qwen2'])
def test_round_trip(shop, tmp_path, kind):
    made = assemble(shop/kind, shop/'ear', shop/'eye', cfg=TINY)
    made.model.save_pretrained(tmp_path, tok=made.processor.tok)
    again, proc = OmniForCausalLM.from_pretrained(tmp_path), OmniProcessor.from_pretrained(tmp_path)
    assert again.cfg == made.model.cfg and proc.tok.get_vocab() == made.processor.tok.get_vocab()
    for (k, a), (_, b) in zip(made.model.state_dict().items(), again.state_dict().items()):
        if not k.endswith(('embed_avg', 'cluster_size', 'started')): assert torch.allclose(a.float(), b.float(), atol=2e-3, rtol=2e-3), k

def test_it_answers_and_learns(whole):
    ask = [dict(role='user', content=[dict(type='text', text='what is this?'),
           dict(type='audio', audio=(torch.randn(16000).numpy()*.1, 16000))])]
    events = list(whole.model.chat(ask, whole.processor, how=Sampling(max_text=3), max_seconds=.3))
    assert events[-1].kind == 'done'
    b = whole.processor.builder
    row = b.text('the cat', True).see(torch.randn(16, 1176), (1, 4, 4)).text(' sees a ball.', True).done()
    from omni_lite.data.mixture import collate
    whole.model.losses(collate([row]))['text'].backward()
    parts = dict(whole.model.named_children())
    assert all(any(p.grad is not None and p.grad.abs().sum() > 0 for p in parts[k].parameters()) for k in ('llm', 'eye', 'bridge'))
    whole.model.zero_grad(set_to_none=True)

def test_table_counts_every_weight_once(shop, whole):
    assert sum(p.weights for p in whole.parts) == sum(count_parameters(whole.model).values())
    rows = {p.part: p for p in whole.parts}
    assert rows['rows of the tags'].weights == 15*48 and rows['rows of the tags'].state == 'new'
    assert rows['language model'].weights == source(shop/'llama').num_parameters() and rows['ear'].source == str(shop/'ear')
    text = str(whole.parts)
    assert all(p.part in text for p in whole.parts) and '% taken' in text.splitlines()[-1]

def test_without_a_language_model(shop):
    made = assemble(ear=shop/'ear', tok=tokenizer(), cfg=TINY)
    assert made.model.cfg.llm.vocab_size == len(made.processor.tok) == made.model.llm.lm_head.out_features
    assert [p.part for p in made.parts if p.state == 'taken'] == ['ear']
    with pytest.raises(ValueError, match='text tokenizer'): assemble(ear=shop/'ear')

def test_given_config_is_not_changed(shop):
    before = replace(TINY); assemble(shop/'qwen2', shop/'ear', shop/'eye', cfg=TINY)
    assert TINY == before

# ---- what does not fit: one sentence with the folder and the cure

def says(e, *words): return '\n' not in str(e.value) and all(str(w) in str(e.value) for w in words)

def test_folders_mixed_up(shop):
    for kw, at, cure in ((dict(ear=shop/'eye'), 'eye', 'a Whisper model'), (dict(eye=shop/'ear'), 'ear', 'a Qwen2-VL'),
                         (dict(eye=shop/'llama'), 'llama', 'a Qwen2-VL model or its visual tower')):
        with pytest.raises(ValueError) as e: assemble(shop/'llama', cfg=TINY, **kw)
        assert says(e, shop/at, f'give the folder of {cure}')
    for wrong in ('ear', 'eye'):
        with pytest.raises(ValueError) as e: assemble(shop/wrong, cfg=TINY)
        assert says(e, shop/wrong, 'such as Qwen2.5 or SmolLM2')

@pytest.mark.parametrize('part,key,value', [('ear', 'encoder_layers', 3), ('ear', 'd_model', 48), ('eye', 'depth', 3)])
def test_a_config_that_lies(shop, tmp_path, part, key, value):
    shutil.copytree(shop/part, tmp_path/part); file = tmp_path/part/'config.json'; d = json.loads(file.read_text())
    d.get('vision_config', d)[key] = value; file.write_text(json.dumps(d))
    with pytest.raises(ValueError) as e: assemble(shop/'llama', cfg=TINY, **{part: tmp_path/part})
    assert says(e, tmp_path/part)

def test_a_weight_that_is_lacking(shop, tmp_path):
    "Transformers would fill it with random numbers."
    shutil.copytree(shop/'llama', tmp_path/'llama'); file = tmp_path/'llama'/'model.safetensors'
    state = load_file(file); state.pop('model.norm.weight'); save_file(state, file, metadata=dict(format='pt'))
    with pytest.raises(ValueError) as e: assemble(tmp_path/'llama', cfg=TINY)
    assert says(e, tmp_path/'llama', 'model.norm.weight', 'copy the folder again')

def test_no_tokenizer_no_config_no_weights_broken_weights(shop, tmp_path):
    for name in ('tok', 'cut'): shutil.copytree(shop/'llama', tmp_path/name)
    for f in (tmp_path/'tok').glob('tok*'): f.unlink()
    cut = tmp_path/'ear'; shutil.copytree(shop/'ear', cut); file = cut/'model.safetensors'; file.write_bytes(file.read_bytes()[:5000])
    (tmp_path/'empty').mkdir(); shutil.copytree(shop/'ear', tmp_path/'bare', ignore=shutil.ignore_patterns('*.safetensors'))
    for kw, words in ((dict(llm=tmp_path/'tok'), ('tok', 'tokenizer')), (dict(llm=tmp_path/'empty'), ('empty', 'config.json')),
                      (dict(llm=shop/'llama', ear=cut), ('ear', 'copy the folder again')),
                      (dict(llm=shop/'llama', ear=tmp_path/'bare'), ('bare', 'no safetensors'))):
        with pytest.raises(ValueError) as e: assemble(cfg=TINY, **kw)
        assert says(e, *words)

def test_a_model_with_other_names(tmp_path):
    "GPT-2 calls its body transformer; the splice would not find it."
    tok = tokenizer(); tok.save_pretrained(tmp_path)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=len(tok), n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError) as e: assemble(tmp_path, cfg=TINY)
    assert says(e, tmp_path, 'such as Qwen2.5 or SmolLM2')

def test_a_name_without_a_network(monkeypatch):
    import huggingface_hub.constants as c
    monkeypatch.setattr(c, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ValueError) as e: part_folder('nobody/no-such-model')
    assert says(e, 'nobody/no-such-model', 'give the folder')
    with pytest.raises(ValueError, match='check the path'): part_folder('/no/such/folder')

# ---- a vocoder

def generator(folder):
    from omni_lite.audio.hifigan import HiFiGAN, HiFiGANConfig
    torch.manual_seed(1); net = HiFiGAN(HiFiGANConfig(channels=32)).eval()
    torch.save({'generator': {k: v for k, v in net.state_dict().items() if k not in ('mean', 'scale')}}, folder/'g_00000001')
    (folder/'config.json').write_text(json.dumps(dict(upsample_initial_channel=32, sampling_rate=22050)))
    return net

def test_a_vocoder_of_another_rate(shop, tmp_path):
    (tmp_path/'gan').mkdir(); net, mel = generator(tmp_path/'gan'), torch.randn(1, 80, 20)
    made = assemble(shop/'llama', vocoder=tmp_path/'gan', cfg=TINY)
    assert assemble(shop/'llama', vocoder=tmp_path/'gan'/'g_00000001', cfg=TINY).model.cfg == made.model.cfg
    rows = {p.part: p.state for p in made.parts}
    assert rows['vocoder'] == 'taken' and rows['bridge of the vocoder'] == 'new'
    assert sum(p.weights for p in made.parts) == sum(count_parameters(made.model).values())
    made.model.save_pretrained(tmp_path/'whole', half=False, tok=made.processor.tok)
    again = OmniForCausalLM.from_pretrained(tmp_path/'whole')
    with torch.no_grad():
        assert torch.allclose(made.model.vocoder.generator(mel), net(mel), atol=1e-6)
        assert torch.allclose(again.vocoder(mel), made.model.vocoder(mel), atol=1e-4)

def test_it_speaks_with_that_voice(shop, tmp_path):
    from omni_lite.omni.voice import Voice
    generator(tmp_path); made = assemble(shop/'llama', vocoder=tmp_path/'g_00000001', cfg=TINY)
    codes = torch.randint(0, 16, (11, 8)); v = Voice(made.model, seed=1)
    whole = Voice(made.model, seed=1).push(codes, True)
    parts = [v.push(codes[a:a + 4], a + 4 >= 11) for a in range(0, 11, 4)]
    assert len(whole) == sum(map(len, parts)) == 11*1920 and abs(whole - __import__('numpy').concatenate(parts)).max() < 1e-3

def test_no_vocoder_there(shop, tmp_path):
    (tmp_path/'g_1').write_bytes(b'no'); (tmp_path/'none').mkdir()
    for source, word in ((tmp_path/'g_1', 'fetch it again'), (tmp_path/'none', '0 generators'), (shop/'x.pth', 'check the path')):
        with pytest.raises(ValueError) as e: assemble(shop/'llama', vocoder=source, cfg=TINY)
        assert says(e, source, word)

# ---- trained from the command line

def test_a_run_begins_from_parts(shop, tmp_path, monkeypatch, capsys):
    "`omni-lite train --preset lite --llm ...`: every stage of lite's recipe, but for the eye, which was given."
    from made import beeper
    from omni_lite.data.speech import build_speech, world_lines
    from omni_lite.data.world import World
    from omni_lite.train import trainer as T
    store = build_speech(world_lines(World('small'), 1600), tmp_path/'store', 0, False, speaker=beeper)
    monkeypatch.setattr(T, 'world_store', lambda *a: store)
    monkeypatch.setattr(T, 'get_preset', lambda name: replace(TINY, name=name))
    out = T.train_command('lite', 3., out=tmp_path/'run', parts=dict(llm=shop/'llama', ear=shop/'ear', eye=shop/'eye'))
    stages = json.loads((out/'stages.json').read_text())['stages']
    assert [s['stage'] for s in stages] == ['tokenizer', 'flow', 'vocoder', '1.1', '1.2', '2.1', '2.2', '3', '4.1', '4.2']
    assert all(s['steps'] > 0 for s in stages) and 'language model' in capsys.readouterr().out
    OmniForCausalLM.from_pretrained(out); OmniProcessor.from_pretrained(out)

def test_lite_without_parts_says_what_to_give(tmp_path):
    from omni_lite.train.trainer import train_command
    with pytest.raises(ValueError, match='lite starts from trained parts: name a folder or a hub name with --llm'):
        train_command('lite', 1., out=tmp_path)
