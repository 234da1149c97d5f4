"""A developer's view of the omni model: conversations that go on, answers that are dropped, batches, Auto classes, borders."""
import gc, threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import omni_lite
from omni_lite.config import preset
from omni_lite.data.world import World
from omni_lite.omni.decoder import Decoder, KVCache, SlowDecoder, decoder_for
from omni_lite.omni.generate import Conversation
from omni_lite.omni.voice import Voice
from omni_lite.omni.model import OmniForCausalLM, llm_sizes
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import SPECIALS, train_tokenizer

ASK = [dict(role='user', content='a cat?')]

@pytest.fixture(scope='module')
def parts():
    torch.manual_seed(0); torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(World('small').corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)),
                                        sampling=replace(cfg.sampling, max_text=4, max_text_only=4))
    m = OmniForCausalLM(cfg).eval()
    m.head.heads[0].bias.data[-1] = -9.  # or an untrained head stops at once
    m.vocoder.pitch_net.out.bias.data[::65] = 5.
    return m, OmniProcessor(tok, cfg)

def small(kind, **kw):
    sizes = dict(vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=128) | kw
    torch.manual_seed(0)
    return {'qwen2': lambda: Qwen2ForCausalLM(Qwen2Config(**sizes)), 'llama': lambda: LlamaForCausalLM(LlamaConfig(**sizes))}[kind]().eval()

# ---- the decoder

@pytest.mark.parametrize('kind', ['qwen2', 'llama'])
@pytest.mark.parametrize('cuts', [(11,), (1,)*11, (4, 1, 6)])
@torch.no_grad()
def test_decoder_equals_transformers(kind, cuts):
    llm, x, at = small(kind), torch.randn(1, 11, 32), 0
    d = Decoder(llm, room=2)
    want = llm.model(inputs_embeds=x).last_hidden_state
    for n in cuts:
        torch.testing.assert_close(d.step(x[:, at:at + n]), want[:, at + n - 1], atol=1e-5, rtol=1e-4); at += n

@pytest.mark.parametrize('make', [Decoder, SlowDecoder])
@torch.no_grad()
def test_what_the_head_reads_may_be_an_earlier_block(make):
    llm, x = small('llama'), torch.randn(1, 5, 32)
    d, last = make(llm, tap=1), make(llm)
    want = llm.model(inputs_embeds=x, output_hidden_states=True)
    torch.testing.assert_close(d.step(x), want.last_hidden_state[:, -1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(d.tapped, llm.model.norm(want.hidden_states[1][:, -1]), atol=1e-5, rtol=1e-4)
    assert torch.equal(last.step(x), last.tapped) and not torch.allclose(last.tapped, d.tapped, atol=1e-3)

@torch.no_grad()
def test_head_and_generation_read_the_same_block(parts):
    m, proc = parts
    b = replace(m.cfg, head=replace(m.cfg.head, block=1)); llm = replace(b.llm, layers=2)
    torch.manual_seed(0); m = OmniForCausalLM(replace(b, llm=llm)).eval()
    talk = Conversation(m, proc).add(ASK, speak=True)
    x = talk.next.clone(); talk.step()
    out = m.llm.model(inputs_embeds=x, output_hidden_states=True)
    row = proc.apply_chat_template(ASK, True)
    text, said = m.states(dict(input_ids=row.ids[None]))
    torch.testing.assert_close(talk.decoder.tapped, m.llm.model.norm(out.hidden_states[1][:, -1]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(said[:, -1], talk.decoder.tapped, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text[:, -1], talk.h, atol=1e-5, rtol=1e-4)

@torch.no_grad()
def test_rows_padded_at_the_left_read_as_alone():
    llm, rows = small('qwen2'), [torch.randn(1, n, 32) for n in (9, 2, 5)]
    pad = torch.tensor([0, 7, 4])
    for make in (Decoder, SlowDecoder):
        d = make(llm, 3, pad)
        h = d.step(torch.cat([torch.nn.functional.pad(r, (0, 0, 9 - r.shape[1], 0)) for r in rows]))
        for b, r in enumerate(rows):
            torch.testing.assert_close(h[b], llm.model(inputs_embeds=r).last_hidden_state[0, -1], atol=1e-5, rtol=1e-4)

@torch.no_grad()
def test_both_decoders_go_back():
    llm, x = small('llama'), torch.randn(1, 8, 32)
    for d in (Decoder(llm), SlowDecoder(llm)):
        once = d.step(x); d.back_to(3)
        torch.testing.assert_close(d.step(x[:, 3:]), once, atol=1e-5, rtol=1e-4)

def test_other_models_are_left_to_transformers():
    assert type(decoder_for(small('qwen2'))) is Decoder
    scaled = small('llama', rope_parameters=dict(rope_type='linear', factor=2., rope_theta=1e4))
    sliding = small('qwen2', use_sliding_window=True, sliding_window=8, max_window_layers=0)
    assert [type(decoder_for(m)) for m in (scaled, sliding)] == [SlowDecoder]*2

def test_the_cache_copies_little():
    c, grown = KVCache(1, 1, 1, 2, torch.zeros(1), room=4), 0
    for n in range(1, 200):
        room = c.room; c.reserve(n); c.length = n; grown += (c.room > room) * room
    assert grown < 2*200

# ---- conversations

def test_a_later_turn_reads_only_what_is_new(parts):
    m, proc = parts; c = Conversation(m, proc); costs = []
    for _ in range(20):
        c.add(ASK); costs.append(c.next.shape[1]); list(c.reply(speak=False))
    assert len(set(costs[1:])) == 1 and costs[1] <= costs[0] + 1

def test_memory_gives_the_answer_of_reading_again(parts):
    m, proc = parts; c = Conversation(m, proc).add(ASK, speak=True)
    first = list(c.reply(max_seconds=.4)); said = c.answers[0].ids
    c.add([dict(role='user', content='a dog?')]); c.step()
    codes = torch.tensor([e.codes for e in first if e.kind == 'frame'])
    b = proc.builder.tag('<C_Q>').text('a cat?').tag('<audiotext_start_baichuan>').tag('<C_A>').add(said)
    b.speak(codes, False).tag('<|endoftext|>').tag('<C_Q>').text('a dog?').tag('<C_A>')
    again = Conversation(m, proc).read([b.done()]); again.step()
    assert c.length == again.length
    torch.testing.assert_close(c.h, again.h, atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize('stop', range(1, 14))
def test_an_answer_dropped_at_any_event_leaves_the_conversation_in_order(parts, stop):
    m, proc = parts; ids = m.cfg.ids; fed = []
    c = Conversation(m, proc).add(ASK, speak=True); it = c.reply(max_seconds=.6)
    for _ in range(stop): next(it, None)
    it.close()
    tail = c.next
    assert torch.equal(tail[:, -1:], c.token_rows([ids.end]))
    if c.answers[0].state == 'speak': assert torch.equal(tail[:, -2:-1], c.token_rows([ids.speak[2]]))
    assert list(c.add(ASK).reply(speak=False))[-1].kind == 'done'

class Script(Conversation):
    "A conversation whose tokens and frames are written down, and which notes what is read."
    def script(self, tokens, frames): self.tokens, self.left_frames, self.seen = list(tokens), list(frames), []; return self
    def draw_text(self, a, how, gen): return self.tokens.pop(0)
    def draw_frames(self, rows, how, gen): return [self.left_frames.pop(0) for _ in rows]
    def step(self): self.seen.append(self.next); super().step()

def test_no_punctuation_is_lost_and_no_text_repeated_at_the_borders(parts):
    m, proc = parts; ids, tok = m.cfg.ids, proc.tok
    one, two = (tok.encode(t, add_special_tokens=False) for t in (' a cat,', ' a dog.'))
    frames = [torch.full((8,), k) for k in (1, 2)]
    s = Script(m, proc).script([*one, ids.speak[0], *two, ids.end], [frames[0], None, frames[1], None])
    events = list(s.add(ASK, speak=True).reply())
    assert ''.join(e.text for e in events if e.kind == 'text').strip() == 'a cat, a dog.' == events[-1].text
    word, frame = s.token_rows, lambda c: m.audio_embed(c)[None, None]
    end = [word([ids.speak[2]])]
    want = [*(word([i]) for i in one), word([ids.speak[0]]), frame(frames[0]), *end,
            *(word([i]) for i in two), word([ids.speak[0]]), frame(frames[1]), *end]
    read = torch.cat([*s.seen[1:], s.next], 1)  # behind the prompt
    assert torch.equal(read, torch.cat([*want, word([ids.end])], 1))
    assert [e.kind for e in events if e.kind in ('segment', 'done')] == ['segment', 'segment', 'done']

def test_an_answer_that_is_all_spoken_is_not_spoken_again(parts):
    m, proc = parts; ids = m.cfg.ids; one = proc.tok.encode(' a cat.', add_special_tokens=False)
    s = Script(m, proc).script([*one, ids.speak[0], ids.end], [torch.ones(8, dtype=torch.long), None])
    assert sum(e.kind == 'segment' for e in s.add(ASK, speak=True).reply()) == 1

def test_rows_of_a_batch_answer_as_alone(parts):
    m, proc = parts; talks = [ASK, [dict(role='user', content='a dog sees a red ball. what color is the ball?')], ASK*2]
    pick = lambda events, b=0: [(e.kind, e.text, e.codes) for e in events if e.row == b and e.kind in ('text', 'frame')]
    both = list(Conversation(m, proc).add(*talks, speak=True).reply(max_seconds=.3))
    for b, t in enumerate(talks): assert pick(both, b) == pick(m.chat(t, proc, max_seconds=.3))
    assert sum(e.kind == 'done' for e in both) == 3

def test_streamed_sound_equals_offline_sound(parts):
    m, proc = parts
    events = list(m.chat(ASK, proc, max_seconds=1.2, seed=5))
    codes = torch.tensor([e.codes for e in events if e.kind == 'frame'])
    wav = np.concatenate([e.sound for e in events if e.kind == 'sound'])
    assert np.array_equal(wav, Voice(m, seed=5).push(codes, True))

@pytest.mark.parametrize('cuts', [(1,)*12, (5, 5, 2), (3, 0, 9), (12, 0)])
def test_sound_does_not_depend_on_how_codes_arrive(parts, cuts):
    m, _ = parts; codes = torch.randint(0, 16, (12, 8)); v, out, at = Voice(m), [], 0
    for i, n in enumerate(cuts): out.append(v.push(codes[at:at + n], i == len(cuts) - 1)); at += n
    assert np.array_equal(np.concatenate(out), Voice(m).push(codes, True))

def test_the_waterfall_adds_up(parts):
    m, proc = parts
    parts_ = [dict(type='audio', audio=(np.random.default_rng(0).normal(0, .1, 16000).astype(np.float32), 16000)), dict(type='text', text='?')]
    t = m.generate([dict(role='user', content=parts_)], proc, max_seconds=.5)[2]
    assert {'files', 'ear', 'eye', 'prompt', 'text', 'frames', 'flow', 'vocoder'} <= set(t['laps'])
    assert abs(sum(t['laps'].values()) - t['first_sound_s']) < 1e-6 <= t['first_sound_s'] <= t['total_s']

# ---- limits and faults

def test_a_conversation_over_the_context_is_refused_and_goes_on(parts):
    m, proc = parts; c = Conversation(m, proc).add(ASK); list(c.reply(speak=False)); n = c.length
    with pytest.raises(ValueError, match='positions and this model holds 2048'): c.add([dict(role='user', content='a cat ' * 1200)])
    assert c.length == n and list(c.add(ASK).reply(speak=False))[-1].kind == 'done'

def test_two_conversations_at_once_do_not_meet(parts):
    m, proc = parts; out = {}
    ask = lambda i: [dict(role='user', content=['a cat?', 'a dog sees a ball.'][i])]
    def run(i, key):
        with torch.no_grad(): out[key] = [(e.kind, e.text, e.codes) for e in m.chat(ask(i), OmniProcessor(proc.tok, proc.cfg), max_seconds=.5)]
    for i in (0, 1): run(i, ('alone', i))
    threads = [threading.Thread(target=run, args=(i, ('together', i))) for i in (0, 1)]
    for t in threads: t.start()
    for t in threads: t.join()
    for i in (0, 1): assert out['together', i] == out['alone', i]

def test_a_thousand_dropped_answers_leave_nothing_behind(parts):
    m, proc = parts
    def turn():
        it = m.chat(ASK, proc, max_seconds=.2)
        for _ in range(2): next(it, None)
        it.close()
    count = lambda: sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    state = {k: v.clone() for k, v in m.state_dict().items()}
    for _ in range(20): turn()
    gc.collect(); before = count()
    for _ in range(1000): turn()
    gc.collect()
    assert count() <= before + 5
    assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())

def test_wrong_parts_say_so(parts):
    m, proc = parts
    with pytest.raises(ValueError, match="'smell'"): list(m.chat([dict(role='user', content=[dict(type='smell')])], proc))
    batch = proc([dict(role='user', content=[dict(type='audio', audio=(np.zeros(16000, np.float32), 16000))])])
    with pytest.raises(ValueError, match='13 sound placeholders but 26'): m(**dict(batch, sounds=batch['sounds']*2))
    see = batch['input_ids'] == m.cfg.ids.assistant
    with pytest.raises(ValueError, match='1 picture placeholders but 4'):
        m.embed(dict(input_ids=batch['input_ids'], see=see, patches=torch.zeros(16, 588), grids=[(1, 4, 4)]))
    seen = proc([dict(role='user', content=[dict(type='image', image='data_samples/pictures/noto/dog.png'), dict(type='image', image=np.zeros((60, 60, 3), np.uint8))])])
    with pytest.raises(ValueError, match=r'dog.png gave 4, the image gave 4'): m(**dict(seen, see=seen['see'] & False))

# ---- as any model of transformers

def test_auto_classes_open_a_checkpoint(parts, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
    m, proc = parts
    m.save_pretrained(tmp_path, tok=proc.tok)
    assert omni_lite.OmniForCausalLM is OmniForCausalLM
    cfg, again = AutoConfig.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert cfg.sizes == m.cfg and cfg.hidden_size == m.cfg.llm.dim and type(again) is OmniForCausalLM
    assert omni_lite.OmniConfig.from_dict(cfg.to_dict()).sizes == m.cfg and again.config.to_dict()['llm']['dim'] == m.cfg.llm.dim
    batch = AutoProcessor.from_pretrained(tmp_path)(ASK)
    assert torch.equal(again(**batch).logits, OmniForCausalLM.from_pretrained(tmp_path)(**batch).logits)
    assert AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).llm.lm_head.weight.dtype == torch.bfloat16

def test_push_to_hub_uploads_what_was_saved(parts):
    from omni_lite.omni import hub
    class Api:
        def create_repo(self, repo, **kw): self.repo = repo
        def upload_folder(self, folder_path, repo_id, commit_message):
            from pathlib import Path
            self.files = {p.name for p in Path(folder_path).iterdir()}
            return 'https://hub/commit'
    api = Api()
    assert parts[0].push_to_hub('someone/nano', api=api) == 'https://hub/commit' and api.repo == 'someone/nano'
    assert {'config.json', 'model.safetensors', 'codec.safetensors'} <= api.files

@pytest.mark.parametrize('kind', ['qwen2', 'llama'])
def test_any_backbone_is_saved_and_loaded_with_its_config(kind, tmp_path, parts):
    llm = small(kind, vocab_size=len(parts[1].tok), tie_word_embeddings=True)
    m = OmniForCausalLM(replace(preset('tiny'), llm=llm_sizes(llm.config)), llm).eval()
    m.save_pretrained(tmp_path, half=False)
    again = OmniForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad(): torch.testing.assert_close(again(ids).logits, llm(ids).logits)
    events = list(again.chat(ASK, OmniProcessor(parts[1].tok, again.cfg), max_seconds=.2))
    assert events[-1].kind == 'done'

def test_packed_rows_score_as_alone(parts):
    m, proc = parts; rows = [proc.apply_chat_template([dict(role='user', content=t)]) for t in ('a cat?', 'a dog sees a ball.', 'one.')]
    packed = dict(input_ids=torch.cat([r.ids for r in rows])[None], codes=torch.cat([r.codes for r in rows])[None],
                  seq_ids=torch.cat([torch.full((len(r),), i) for i, r in enumerate(rows)])[None])
    with torch.no_grad():
        h = m.hidden(packed)[0].split([len(r) for r in rows])
        for r, part in zip(rows, h): torch.testing.assert_close(part, m.hidden(dict(input_ids=r.ids[None]))[0], atol=1e-5, rtol=1e-4)

def test_pictures_come_as_files_bytes_arrays_and_pil(parts, tmp_path):
    from PIL import Image
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)); im.save(tmp_path/'a.png')
    rows = [parts[1].apply_chat_template([dict(role='user', content=[dict(type='image', image=i)])])
            for i in (tmp_path/'a.png', str(tmp_path/'a.png'), (tmp_path/'a.png').read_bytes(), im, np.asarray(im))]
    assert all(torch.equal(r.pictures[0][0], rows[0].pictures[0][0]) for r in rows)

# ---- the page's engine

@pytest.fixture
def engine(parts):
    from omni_lite.serve.engine import NanoEngine
    e = NanoEngine(memory=2); e.model, e.processor = parts
    return e

def ask_engine(e, messages, stop=None):
    it, said = e.reply(messages, speak=False), ''
    for i, ev in enumerate(it):
        said += ev.text if ev.kind == 'text' else ''
        if stop is not None and i == stop: break
    it.close()
    return messages + [dict(role='assistant', content=[dict(type='text', text=said.strip())])]

def test_the_engine_reads_a_later_turn_on_top_of_the_memory(engine):
    talk = ask_engine(engine, [dict(role='user', content=[dict(type='text', text='a cat?')])])
    (memory,) = engine.talks.values(); before = memory.length
    talk = ask_engine(engine, talk + [dict(role='user', content=[dict(type='text', text='a dog?')])])
    (again,) = engine.talks.values()
    assert again is memory and before < again.length <= before + 14

def test_another_history_is_another_conversation_and_the_oldest_goes(engine):
    ask = lambda t: [dict(role='user', content=[dict(type='text', text=t)])]
    talks = [ask_engine(engine, ask(t)) for t in ('a cat?', 'a dog?', 'a ball?')]
    assert len(engine.talks) == 2
    first = next(iter(engine.talks.values()))
    ask_engine(engine, talks[0] + ask('one?'))  # forgotten: read again
    assert first not in engine.talks.values() or len(engine.talks) == 2
    changed = [*talks[2][:-1], dict(role='assistant', content=[dict(type='text', text='no.')])]
    memory = list(engine.talks.values())
    ask_engine(engine, changed + ask('two?'))
    assert list(engine.talks.values())[-1] not in memory

def test_an_interrupted_answer_is_remembered_as_far_as_it_went(engine):
    talk = ask_engine(engine, [dict(role='user', content=[dict(type='text', text='a cat?')])], stop=0)
    (memory,) = engine.talks.values()
    ask_engine(engine, talk + [dict(role='user', content=[dict(type='text', text='a dog?')])])
    assert list(engine.talks.values()) == [memory]

def test_an_answer_that_failed_is_not_remembered(engine, monkeypatch):
    monkeypatch.setattr(Conversation, 'advance', lambda self, *a: (_ for _ in ()).throw(RuntimeError('out of memory')))
    with pytest.raises(RuntimeError): list(engine.reply([dict(role='user', content='a cat?')]))
    assert not engine.talks
