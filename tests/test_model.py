"""The omni model, its generation and the trainer on tiny random weights."""
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_lite.config import LLMConfig, preset
from omni_lite.data.interleave import asr_row, chat_row, itts_row, text_row, tts_row
from omni_lite.data.mixture import collate
from omni_lite.data.tasks import Material, bind
from omni_lite.data.world import World
from omni_lite.config import Sampling
from omni_lite.omni.voice import Voice
from omni_lite.omni.model import OmniForCausalLM, build_llm, look_back, match_up, start_shallow
from omni_lite.omni.processor import OmniProcessor
from omni_lite.text import train_tokenizer
from omni_lite.train.stages import NANO, freeze, recipe
from omni_lite.train.muon import MuonAdamW
from omni_lite.train.trainer import LMObjective

WORLD = World('small')

@pytest.fixture(scope='module')
def parts():
    torch.manual_seed(0); torch.set_num_threads(1)
    tok = train_tokenizer(l for l, _ in zip(WORLD.corpus(0), range(500)))
    cfg = preset('tiny'); cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)))
    m = OmniForCausalLM(cfg).eval()
    m.vocoder.pitch_net.out.bias.data[::65] = 5.  # voiced throughout: an untrained pitch net sits on the fence
    return m, OmniProcessor(tok, cfg)

def speech(n, seed=0): return torch.randint(0, 16, (n, 8), generator=torch.Generator().manual_seed(seed)), None

def test_padding_does_not_change_the_losses(parts):
    "A row in a batch of longer rows is scored as alone."
    m, proc = parts; b = proc.builder
    rows = [text_row(b, 'a cat.'), asr_row(b, speech(9), 'the dog sees a red ball.'), tts_row(b, 'a cat.', speech(5))]
    torch.manual_seed(0)
    with torch.no_grad():
        h = m.hidden(collate(rows))
        for i, r in enumerate(rows):
            alone = m.hidden(collate([r]))[0]
            assert torch.allclose(h[i, :len(r)], alone, atol=1e-4)

def test_every_placeholder_is_filled(parts):
    m, proc = parts
    tasks, rng = bind(Material(WORLD, proc)), random.Random(0)
    batch = collate([tasks[k](rng) for k in ('picture', 'clip', 'text', 'caption')])
    assert int(batch['see'].sum()) == sum(h*w//4 for _, h, w in batch['grids'])
    broken = dict(batch, patches=batch['patches'][:-4], grids=batch['grids'][:-1] + [(1, 2, batch['grids'][-1][2]*batch['grids'][-1][1]//2 - 2)])
    with pytest.raises(ValueError, match='picture'): m.embed(broken)

def test_frames_after_an_answer_do_not_change_it(parts):
    "Causality across modalities: what is spoken later cannot change what was predicted before."
    m, proc = parts; b = proc.builder
    short, long = itts_row(b, [('a cat', speech(4))]), itts_row(b, [('a cat', speech(4)), ('a dog.', speech(6, 1))])
    n = len(short) - 1
    with torch.no_grad(): assert torch.allclose(m.hidden(collate([short]))[0, :n], m.hidden(collate([long]))[0, :n], atol=1e-4)

def test_same_seed_same_answer_and_stop_at_any_event(parts):
    m, proc = parts; how = Sampling(text_temperature=1., max_text=6)
    run = lambda seed: [(e.kind, e.text, e.codes) for e in m.chat([dict(role='user', content='a cat?')], proc, seed=seed, max_seconds=.5, how=how)]
    assert run(1) == run(1)
    for stop in range(4):
        it = m.chat([dict(role='user', content='a cat?')], proc, max_seconds=.5, how=how)
        for _ in range(stop): next(it, None)
        it.close()

def test_text_from_outside_cannot_hold_tags(parts):
    _, proc = parts
    row = proc.apply_chat_template([dict(role='user', content='hi <C_A> yes <audiogen_start_baichuan>')])
    tag = proc.tok.convert_tokens_to_ids
    assert (row.ids == tag('<C_A>')).sum() == 1 and (row.ids == tag('<audiogen_start_baichuan>')).sum() == 0

@pytest.mark.parametrize('name', [s.name for s in NANO if s.kind == 'lm'])
def test_frozen_parts_do_not_move_and_trained_ones_do(parts, name):
    "Every language-model stage: frozen weights stay to the bit, trained modules change."
    stage = next(s for s in NANO if s.name == name)
    torch.manual_seed(1)
    m = OmniForCausalLM(parts[0].cfg); proc = parts[1]; b = proc.builder; rng = random.Random(0)
    tasks = bind(Material(WORLD, proc))
    rows = [tasks['picture'](rng), tasks['clip'](rng), text_row(b, 'a cat.'), asr_row(b, speech(9), 'a dog.'), tts_row(b, 'a cat.', speech(12))]
    before = {k: v.clone() for k, v in m.state_dict().items()}
    opt = MuonAdamW(freeze(m, stage)); batch = collate(rows)
    for _ in range(3):
        loss = m.losses(batch, 1.); sum(loss[k] for k in ('text', 'audio')).backward(); opt.step(); opt.zero_grad()
    moved = {k.split('.')[0] for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == set(stage.trains)

@pytest.mark.parametrize('seed', range(12))
def test_a_tally_goes_on_and_ends_at_the_answer(parts, seed):
    m = Material(WORLD, parts[1]); s = WORLD.sample('how_many', rng=seed)
    count = m.tally(s.image, (1, 8, 8)); said = [parts[1].tok.decode([k]).strip() for k in count if k >= 0]
    n = [WORLD.numbers.index(w) for w in said]
    assert len(count) == 16 and n == sorted(n) and set(n) <= set(range(5)) and said[-1] + '.' == s.answer
    assert -100 not in count[len(count) - len(said):]  # nothing is uncounted after the first

def test_counting_rows_carry_the_tally(parts):
    m = Material(WORLD, parts[1]); m.image_families = ['how_many']
    row = bind(m)['picture'](random.Random(0))
    assert row.align[row.see][-1] == row.labels[row.labels >= 0][0]  # the last picture token knows the answer

def test_recipe_shares_and_unknown_preset():
    assert abs(sum(s.share for s in recipe()) - 1) < 1e-9 and abs(sum(s.share for s in recipe(shipped=True)) - 1) < 1e-9
    with pytest.raises(ValueError, match='no recipe'): recipe('70b')

def test_text_under_a_frozen_language_model_is_read_and_moves_nothing(parts):
    from omni_lite.train.stages import Stage
    from omni_lite.train.trainer import StageRun, Workshop
    m, proc = parts; shop = Workshop(m, proc, WORLD, None, progress=False)
    run = StageRun(shop, Stage('x', 'lm', dict(bridge=1e-3), dict(text=1.)), steps=2)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    assert run.one_step()['text'] > 0 and all(torch.equal(v, before[k]) for k, v in m.state_dict().items())

def test_a_folder_that_does_not_fit_is_refused(parts, tmp_path):
    m, proc = parts
    m.save_pretrained(tmp_path, tok=proc.tok)
    text = (tmp_path/'config.json').read_text().replace('"layers": 2', '"layers": 3')
    (tmp_path/'config.json').write_text(text)
    with pytest.raises(ValueError, match='does not fit its config'): OmniForCausalLM.from_pretrained(tmp_path)

def test_codebooks_survive_saving_exactly(parts, tmp_path):
    m, proc = parts
    m.save_pretrained(tmp_path, tok=proc.tok); again = OmniForCausalLM.from_pretrained(tmp_path)
    for a, b in zip(m.tokenizer.rvq.books, again.tokenizer.rvq.books): assert torch.equal(a.embed, b.embed)
    assert OmniProcessor.from_pretrained(tmp_path).tok.get_vocab() == proc.tok.get_vocab()

def test_a_system_message_has_its_tag(parts):
    _, proc = parts
    row = proc.apply_chat_template([dict(role='system', content='be kind.'), dict(role='user', content='a cat?')])
    assert row.ids[0] == proc.tok.convert_tokens_to_ids('<B_SYS>')

# ---- the head start of a language model

@pytest.mark.parametrize('heads, keys, dim', [(4, 4, 128), (4, 2, 256), (8, 8, 128)])
def test_heads_look_back_at_any_distance_from_the_start(heads, keys, dim):
    "A bias on queries and keys, turned by rotary positions, peaks a fixed number of steps back."
    torch.manual_seed(0)
    llm = build_llm(LLMConfig(64, dim, 3, heads, keys, dim)); look_back(llm); llm.set_attn_implementation('eager')
    with torch.no_grad(): seen = llm(torch.zeros(1, 40, dtype=torch.long), output_attentions=True).attentions[0][0]
    for h in range(heads):
        back = h // (heads//keys) + 1
        assert seen[h].argmax(-1)[back:].tolist() == list(range(40 - back))

@pytest.mark.parametrize('heads, keys, dim', [(4, 4, 256), (4, 2, 256), (2, 2, 128)])
def test_the_second_block_compares_words(heads, keys, dim):
    "Behind a word that comes again, one head looks at the places where it stands, wherever they are."
    torch.manual_seed(0)
    llm = build_llm(LLMConfig(512, dim, 3, heads, keys, dim)); look_back(llm); match_up(llm); llm.set_attn_implementation('eager')
    ids = torch.stack([torch.randperm(512)[:24] for _ in range(40)]); first = torch.arange(40) % 16 + 2
    ids[torch.arange(40), 22] = ids[torch.arange(40), first]
    with torch.no_grad(): seen = llm(ids, output_attentions=True).attentions[1][:, 0, 23]  # (40, 24)
    best = seen.argmax(-1)
    assert ((best == first) | (best == 22)).float().mean() > .9
    assert seen[torch.arange(40), first].mean() > 5/24  # five times what chance gives

def test_blocks_that_begin_as_nothing_add_nothing():
    torch.manual_seed(0)
    llm, x = build_llm(LLMConfig(64, 32, 4, 2, 2, 64)), torch.randint(0, 64, (2, 9))
    start_shallow(llm, 2)
    with torch.no_grad():
        deep = llm(x).logits
        llm.model.layers = llm.model.layers[:2]; llm.config.num_hidden_layers = 2
        assert torch.equal(llm(x).logits, deep)

def test_a_stage_may_train_the_first_blocks_alone(parts):
    stage = next(s for s in NANO if s.blocks)
    m = OmniForCausalLM(replace(parts[0].cfg, llm=replace(parts[0].cfg.llm, layers=4))); torch.manual_seed(0)
    before, opt = {k: v.clone() for k, v in m.state_dict().items()}, MuonAdamW(freeze(m, stage))
    tasks, rng = bind(Material(WORLD, parts[1])), random.Random(0)
    m.losses(collate([tasks['owners'](rng) for _ in range(4)]))['text'].backward(); opt.step()
    moved = {k.split('.')[3] for k, v in m.state_dict().items() if '.layers.' in k and not torch.equal(v, before[k])}
    assert moved == {str(i) for i in range(stage.blocks)}

# ---- sentences nobody has said

@pytest.fixture(scope='module')
def told(parts, tmp_path_factory):
    from omni_lite.data.speech import Utterance, build_speech
    def read(text, voice, seed=0):
        words = [(w, .1 + .2*i, .3 + .2*i) for i, w in enumerate(text.split())]
        return Utterance(text, np.random.default_rng(seed).normal(0, .05, int(24000*(.3 + .2*len(words)))).astype(np.float32), voice, words, [])
    say = ('the cat has a red key.', 'the dog sees a blue bus.', 'tom has a red bus.', 'emma sees the dog.', 'yes.')
    lines = [dict(text=t, voice=v, kind='answer') for t in say for v in ('heart', 'low')]
    store = build_speech(lines, tmp_path_factory.mktemp('told'), workers=0, progress=False, speaker=read)
    codes = np.arange(sum(r['n_frames12'] for r in store.rows))[:, None].repeat(8, 1).astype(np.int16)
    return Material(WORLD, parts[1], store, codes)

def test_joined_speech_says_its_text_in_one_voice(told):
    "Every frame of a joined sentence comes from an utterance of the same voice, in order, under the word it says."
    rng, news, owner = random.Random(0), set(), {}
    for i, r in enumerate(told.rows): owner |= {f: (i, int(w)) for f, w in zip(range(r['start12'], r['start12'] + r['n_frames12']), told.said_words(i))}
    for _ in range(200):
        i = rng.randrange(len(told.rows)); text, (codes, align) = told.joined(rng, i, False)
        news.add(text); frames, words = codes[:, 0].tolist(), text.split()
        assert len(codes) == len(align) and len({told.rows[owner[f][0]]['voice'] for f in frames}) == 1
        assert sum(b != a + 1 for a, b in zip(frames, frames[1:])) <= 1
        said = [told.rows[u]['text'].split()[w] for u, w in map(owner.get, frames) if w >= 0]
        assert [w for w, old in zip(said, [None, *said]) if w != old] == words
    assert len(news - {r['text'] for r in told.rows}) >= 5
