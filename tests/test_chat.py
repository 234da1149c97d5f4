"""The chat page through `gradio_client`, the door for user files, one answer at a time; a scripted engine answers."""
import base64, gc, io, json, threading, time, wave
from pathlib import Path

import numpy as np, pytest

from scripted import ScriptedEngine, served, write_movie, write_picture, write_sound

from omni_lite.serve.engine import (EAR_RATE, MAX_SECONDS, Engine, NanoEngine, OneAtATime, check_message, limits_text,
                                    model_parts, recent, wav_bytes)

TYPED = 'Typed questions stay text' # the first voice of the asker: none

# ---- the door: gradio's parts to model parts

def test_model_parts_from_every_shape_gradio_sends():
    want = [{'type':'audio', 'audio':'/a/q.wav'}, {'type':'text', 'text':'hi'}]
    assert model_parts({'text':' hi ', 'files':['/a/q.wav']}) == want
    assert model_parts({'text':'hi', 'files':[{'path':'/a/q.wav', 'mime_type':'audio/wav'}]}) == want
    file = {'type':'file', 'file':{'path':'/a/q.wav', 'mime_type':'audio/wav'}}
    assert model_parts([file, {'type':'text', 'text':'hi'}]) == want
    assert model_parts('hi') == want[1:]
    assert model_parts('  ') == []

def test_mime_type_wins_over_the_name():
    assert model_parts([{'type':'file', 'file':{'path':'/a/x.webm', 'mime_type':'audio/webm'}}])[0]['type'] == 'audio'
    assert model_parts(dict(text='', files=['/a/x.webm']))[0]['type'] == 'video'

def test_other_files_are_refused_by_name():
    with pytest.raises(ValueError, match='notes.pdf is none of these'):
        model_parts(dict(text='', files=['/a/notes.pdf']))

# ---- the door: what passes

def one_sentence(e):
    "A refusal a visitor can read: one line, one full stop at the end, no trace of Python."
    s = str(e.value)
    assert s.endswith('.') and '\n' not in s and 'Error' not in s and len(s) < 160, s
    return s

def test_sound_comes_out_at_the_ears_rate(tmp_path):
    c = check_message(dict(text='', files=[write_sound(tmp_path/'q.wav', 1.5)]))
    x, rate = c.parts[0]['audio']
    assert rate == EAR_RATE and abs(len(x) - 1.5*EAR_RATE) < 32 and x.dtype == np.float32
    assert abs(np.sqrt(np.mean(x**2)) - 0.3/np.sqrt(2)) < 0.01 # loudness is kept
    assert c.senses[0].kind == 'audio' and not c.notices

@pytest.mark.parametrize('ending', ['flac', 'ogg', 'mp3'])
def test_other_sound_formats(tmp_path, ending):
    import soundfile as sf
    path = tmp_path/f'q.{ending}'
    sf.write(path, 0.3*np.sin(np.arange(44_100)/20), 44_100)
    x, _ = check_message(dict(text='', files=[str(path)])).parts[0]['audio']
    assert abs(len(x)/EAR_RATE - 1) < 0.1

def test_stereo_is_mixed_and_long_sound_is_cut_with_a_notice(tmp_path):
    import soundfile as sf
    x = 0.3*np.sin(np.arange(8_000*33)/9)
    sf.write(tmp_path/'long.wav', np.stack([x, x], 1), 8_000)
    c = check_message(dict(text='', files=[str(tmp_path/'long.wav')]))
    assert c.parts[0]['audio'][0].shape == (int(MAX_SECONDS*EAR_RATE),)
    assert len(c.notices) == 1 and 'first 30 s' in c.notices[0]

def test_silence_empty_and_too_short(tmp_path):
    with pytest.raises(ValueError) as e: check_message(dict(text='', files=[write_sound(tmp_path/'s.wav', 1, level=0)]))
    assert one_sentence(e) == 'I heard only silence. Please speak closer to the microphone.'
    with pytest.raises(ValueError, match='tenth of a second') as e:
        check_message(dict(text='', files=[write_sound(tmp_path/'t.wav', 0.05)]))
    one_sentence(e)
    for empty in ('', '   ', dict(text='', files=[]), []):
        with pytest.raises(ValueError, match='empty'): check_message(empty)

def test_a_short_word_in_long_silence_is_not_silence(tmp_path):
    x = np.zeros(16_000*20)
    x[8_000:11_000] = 0.02*np.sin(np.arange(3_000)/3)
    (tmp_path/'w.wav').write_bytes(wav_bytes(x, 16_000))
    check_message(dict(text='', files=[str(tmp_path/'w.wav')]))

@pytest.mark.parametrize('name', ['a.wav', 'a.mp3', 'a.png', 'a.jpg', 'a.mp4', 'a.webm'])
@pytest.mark.parametrize('data', [b'', b'this is not media at all'*20, bytes(4096)], ids=['empty', 'text', 'zeros'])
def test_broken_files_are_refused_in_one_sentence(tmp_path, name, data):
    (tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=name) as e: check_message(dict(text='', files=[str(tmp_path/name)]))
    one_sentence(e)

@pytest.mark.parametrize('cut', [0.02, 0.5, 0.9])
def test_truncated_files_never_raise_anything_else(tmp_path, cut):
    for name, make in [('p.png', write_picture), ('s.wav', write_sound), ('m.mp4', write_movie)]:
        data = Path(make(tmp_path/name)).read_bytes()
        (tmp_path/name).write_bytes(data[:int(len(data)*cut)])
        try: check_message(dict(text='', files=[str(tmp_path/name)]))
        except ValueError as e: assert name in str(e) or 'tenth of a second' in str(e)

def test_picture_keeps_shape_shrinks_and_lies_on_white(tmp_path):
    c = check_message(dict(text='x', files=[write_picture(tmp_path/'p.png', (3000, 1500))]))
    assert c.parts[0]['image'].size == (1024, 512) and c.parts[0]['image'].mode == 'RGB'
    from PIL import Image
    Image.new('RGBA', (8, 8), (0, 0, 0, 0)).save(tmp_path/'clear.png')
    im = check_message(dict(text='', files=[str(tmp_path/'clear.png')])).parts[0]['image']
    assert im.getpixel((3, 3)) == (255, 255, 255)

def test_enormous_files(tmp_path, monkeypatch):
    from PIL import Image
    Image.new('1', (8000, 5001)).save(tmp_path/'big.png')
    with pytest.raises(ValueError, match='40 megapixels') as e:
        check_message(dict(text='', files=[str(tmp_path/'big.png')]))
    one_sentence(e)
    with open(tmp_path/'big.wav', 'wb') as f: f.truncate(51*2**20)
    with pytest.raises(ValueError, match='51 MB') as e: check_message(dict(text='', files=[str(tmp_path/'big.wav')]))
    one_sentence(e)

def test_clip_has_one_frame_a_second_and_says_so(tmp_path):
    c = check_message(dict(text='', files=[write_movie(tmp_path/'m.mp4', seconds=3)]))
    assert c.parts[0] == {'type':'video', 'video':str(tmp_path/'m.mp4')}
    assert len(c.senses[0].media) == 3 and c.senses[0].detail.startswith('3 frames, 1 a second, with 3.')
    assert c.parts[1]['type'] == 'audio' and len(c.parts) == 2, 'a clip is heard as well'

def test_a_silent_clip_is_only_watched(tmp_path):
    c = check_message(dict(text='', files=[write_movie(tmp_path/'m.mp4', seconds=2, sound=False)]))
    assert [p['type'] for p in c.parts] == ['video'] and c.senses[0].detail == '2 frames, 1 a second'

def test_clip_without_frames(tmp_path):
    with pytest.raises(ValueError, match='no pictures') as e:
        check_message(dict(text='', files=[write_movie(tmp_path/'m.mp4', frames=False)]))
    one_sentence(e)

def test_long_clip_is_cut_not_refused(tmp_path):
    import av
    c = check_message(dict(text='', files=[write_movie(tmp_path/'m.mp4', seconds=40, rate=2, size=(64, 48))]))
    assert 'first 30 s' in c.notices[0]
    with av.open(c.parts[0]['video']) as v: last = [f.time for f in v.decode(video=0)][-1]
    assert 29 <= last <= 32

def test_too_many_files_and_too_much_text(tmp_path):
    p = write_picture(tmp_path/'p.png', (16, 16))
    with pytest.raises(ValueError, match='at most 8 files'): check_message(dict(text='', files=[p]*9))
    with pytest.raises(ValueError, match='2000'): check_message('a'*2001)

def test_recent_keeps_the_system_and_starts_with_a_question():
    talk = [dict(role=r, content=[]) for r in ('system', *['user', 'assistant']*6, 'user')]
    got = recent(talk, 3)
    assert [m['role'] for m in got] == ['system', 'user', 'assistant', 'user', 'assistant', 'user']

def test_wav_bytes_are_sound_and_never_wrap():
    with wave.open(io.BytesIO(wav_bytes(np.array([0., 2., -2., np.nan]), 24_000))) as w:
        assert np.frombuffer(w.readframes(4), '<i2').tolist() == [0, 32767, -32767, 0] and w.getframerate() == 24_000

def test_limits_come_from_the_model_card(tmp_path):
    assert 'small' in limits_text(ScriptedEngine())
    card = '# nano\n\nSpeaks.\n\n## Limits\n\nCannot count past five.\n\n## Licence\n\nApache'
    (tmp_path/'README.md').write_text(card)
    assert limits_text(NanoEngine(tmp_path)) == 'Cannot count past five.'
    (tmp_path/'limits.md').write_text('Knows no names.')
    assert limits_text(OneAtATime(NanoEngine(tmp_path))) == 'Knows no names.'

def test_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match='no checkpoint in .*nowhere'): list(NanoEngine(tmp_path/'nowhere').reply([]))

def test_the_engine_reads_a_checkpoint_answers_and_counts(tmp_path):
    pytest.importorskip('omni_lite.omni.generate', reason='the model is not built yet')
    from dataclasses import replace
    from omni_lite.config import preset
    from omni_lite.omni.model import OmniForCausalLM
    from omni_lite.text import train_tokenizer
    tok, cfg = train_tokenizer(['what is this? a cat. a dog sees a ball.']*20), preset('tiny')
    cfg = replace(cfg, llm=replace(cfg.llm, vocab_size=len(tok)))
    OmniForCausalLM(cfg).save_pretrained(tmp_path/'tiny', tok=tok)
    engine = NanoEngine(tmp_path/'tiny')
    message = check_message(dict(text='what is this?', files=[write_sound(tmp_path/'q.wav', 1.),
                                                              write_picture(tmp_path/'p.png'),
                                                              write_movie(tmp_path/'m.mp4', 2)]))
    talk = [dict(role='user', content=message.parts)]
    assert engine.count_tokens(talk) == {}, 'counting must not read the model'
    events = list(engine.reply(talk, max_seconds=0.5))
    assert events[-1].kind == 'done' and events[-1].text == ''.join(e.text for e in events if e.kind == 'text').strip()
    counts = engine.count_tokens(talk)
    assert counts['sound'] >= 13 + 25 and counts['picture'] > 0 and counts['text'] >= 4
    again = list(engine.reply(talk, max_seconds=0.5))
    assert [e.text for e in again] == [e.text for e in events], 'same seed, same answer'

# ---- one answer at a time

ASK = [dict(role='user', content=[dict(type='text', text='hi')])]

def test_both_engines_are_engines():
    assert isinstance(ScriptedEngine(), Engine) and isinstance(OneAtATime(ScriptedEngine()), Engine)

def test_answers_do_not_overlap():
    engine = ScriptedEngine(pause=0.002)
    door, kinds = OneAtATime(engine), []
    def run(): kinds.append([e.kind for e in door.reply(ASK)])
    threads = [threading.Thread(target=run) for _ in range(5)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert len(kinds) == 5 and all(k[-1] == 'done' for k in kinds)
    assert engine.most_running == 1 and not door.busy

@pytest.mark.parametrize('how', ['close', 'drop', 'gone', 'error'])
def test_the_turn_is_free_after_an_answer_that_was_not_finished(how):
    engine = ScriptedEngine(fail_on='boom' if how == 'error' else '')
    door, here = OneAtATime(engine), [True]
    talk = [dict(role='user', content=[dict(type='text', text='boom')])] if how == 'error' else ASK
    it = door.reply(talk, alive=lambda: here[0])
    if how == 'error':
        with pytest.raises(RuntimeError): next(it)
    else: next(it)
    assert door.busy == (how != 'error')
    if how == 'close': it.close()
    if how == 'drop':
        del it
        gc.collect()
    if how == 'gone':
        here[0] = False
        assert list(it) == []
    assert not door.busy and engine.running == 0
    assert [e.kind for e in door.reply(ASK)][-1] == 'done'

def test_a_forgotten_answer_blocks_the_next_one_only_for_its_patience():
    engine = ScriptedEngine()
    door = OneAtATime(engine, patience=0.2)
    forgotten = door.reply(ASK)
    next(forgotten)
    assert [e.kind for e in door.reply(ASK)][-1] == 'done'
    assert engine.closed == 1 and list(forgotten) == [] and engine.most_running == 1

def test_one_who_waits_and_leaves_does_not_take_the_turn():
    door, here = OneAtATime(ScriptedEngine()), [True]
    first = door.reply(ASK)
    next(first)
    got = []
    t = threading.Thread(target=lambda: got.extend(door.reply(ASK, alive=lambda: here[0])))
    t.start()
    here[0] = False
    t.join(10)
    assert not t.is_alive() and got == [] and next(first).kind == 'text'

# ---- the page

gradio_client = pytest.importorskip('gradio_client', reason='the chat page needs gradio: pip install omni_lite[apps]')
pytest.importorskip('gradio', reason='the chat page needs gradio: pip install omni_lite[apps]')

@pytest.fixture(scope='module')
def engine(): return ScriptedEngine(pause=0.01, fail_on='boom')

@pytest.fixture(scope='module')
def page(engine):
    sine = lambda text: (0.3*np.sin(np.arange(12_000)/10), 24_000)
    with served(engine, voices={'Sine':sine}, examples=[]) as (url, _): yield url

@pytest.fixture
def visitor(page): return gradio_client.Client(page, verbose=False)

def send(c, text='', files=(), voice=TYPED):
    files = [gradio_client.handle_file(str(f)) for f in files]
    return c.predict(dict(text=text, files=files), voice, api_name='/take')[0]

def hear(c, speak=True): return c.submit(speak, api_name='/answer')

def talk(c, text='', files=(), voice=TYPED, speak=True):
    send(c, text, files, voice)
    return hear(c, speak).result(60)

def texts(chat): # [] for an update that left the chat as it was
    return [p['text'] for m in chat for p in m['content'] if p['type'] == 'text'] if isinstance(chat, list) else []
def files_in(chat, role):
    return [p['file'] for m in chat if m['role'] == role for p in m['content'] if p['type'] == 'file']

def read_wav(path):
    import soundfile as sf
    return sf.read(path, dtype='float32')

def test_text_streams_and_the_whole_voice_is_real_sound(visitor, engine):
    send(visitor, 'hello <b>there</b>')
    job = hear(visitor)
    chat, _, strip, timings = job.result(60)
    grown = [t[-1] for o in job.outputs() if len(t := texts(o[0])) == 2]
    assert len(set(grown)) > 3, 'the text should grow while it is made'
    assert 'Turn 1: text' in texts(chat)[-1] and '&lt;b&gt;' in texts(chat)[0]
    x, rate = read_wav(files_in(chat, 'assistant')[-1])
    assert rate == 24_000 and abs(len(x)/rate - 1.7) < 0.01 and abs(np.sqrt(np.mean(x**2)) - 0.3/np.sqrt(2)) < 0.01
    assert 'frames of sound' in strip and 'real-time factor' in timings and 'first sound' in timings

def test_silent_answer_has_no_voice(visitor):
    chat, _, strip, timings = talk(visitor, 'hush', speak=False)
    assert not files_in(chat, 'assistant') and 'first sound' not in timings and '0 frames' in strip

def test_every_kind_of_part_reaches_the_engine(visitor, engine, tmp_path):
    files = [write_sound(tmp_path/'q.wav'), write_picture(tmp_path/'p.png'), write_movie(tmp_path/'m.mp4')]
    chat, *_ = talk(visitor, 'all of it', files)
    assert 'audio and image and video and audio and text' in texts(chat)[-1] # the clip has sound too
    parts = engine.asked[-1][-1]['content']
    assert [p['type'] for p in parts] == ['audio', 'image', 'video', 'audio', 'text']
    assert parts[0]['audio'][1] == EAR_RATE and len(parts[0]['audio'][0]) == EAR_RATE
    assert parts[1]['image'].size == (320, 240) and Path(parts[2]['video']).suffix == '.mp4'
    assert len(files_in(chat, 'user')) == 3

def test_a_typed_question_can_be_asked_aloud(visitor, engine):
    chat, *_ = talk(visitor, 'read me', voice='Sine')
    assert [p['type'] for p in engine.asked[-1][-1]['content']] == ['audio'] and len(files_in(chat, 'user')) == 1

def test_several_turns_are_remembered_as_model_messages(visitor, engine):
    talk(visitor, 'one', speak=False)
    chat, *_ = talk(visitor, 'two', speak=False)
    assert [m['role'] for m in engine.asked[-1]] == ['user', 'assistant', 'user'] and 'Turn 2' in texts(chat)[-1]
    assert engine.asked[-1][1]['content'] == [dict(type='text', text='Turn 1: text. You wrote: one')]

def test_two_visitors_at_once_see_only_their_own_turns(page, engine):
    out, engine.most_running = {}, 0
    def run(word):
        c = gradio_client.Client(page, verbose=False)
        for i in range(2): out[word] = talk(c, f'{word} {i}')[0]
    threads = [threading.Thread(target=run, args=(w,)) for w in ('apple', 'bread')]
    for t in threads: t.start()
    for t in threads: t.join(120)
    for mine, other in (('apple', 'bread'), ('bread', 'apple')):
        said = json.dumps(out[mine])
        assert other not in said and said.count(mine) == 4 and 'Turn 2' in said and 'Turn 3' not in said
    assert engine.most_running == 1

@pytest.mark.parametrize('kind, says', [('broken', 'cannot read'), ('silence', 'only silence'), ('empty', 'empty'),
                                        ('frameless', 'no pictures')])
def test_bad_input_gets_one_sentence_and_the_chat_goes_on(visitor, engine, tmp_path, kind, says):
    (tmp_path/'broken.mp4').write_bytes(b'nothing'*99)
    files = dict(broken=lambda: [tmp_path/'broken.mp4'], empty=list,
                 silence=lambda: [write_sound(tmp_path/'s.wav', level=0)],
                 frameless=lambda: [write_movie(tmp_path/'f.mp4', frames=False)])[kind]()
    before = len(engine.asked)
    chat, *_ = talk(visitor, '', files)
    assert says in texts(chat)[-1] and chat[-1]['role'] == 'assistant' and len(engine.asked) == before
    chat, *_ = talk(visitor, 'still there', speak=False)
    assert 'Turn 1: text. You wrote: still there' in texts(chat)[-1], 'what was refused must not reach the model later'

def test_other_files_do_not_get_as_far_as_the_chat(visitor, tmp_path):
    (tmp_path/'notes.pdf').write_bytes(b'%PDF')
    with pytest.raises(Exception, match='Invalid file type'): send(visitor, '', [tmp_path/'notes.pdf'])
    assert 'Turn 1' in texts(talk(visitor, 'still there', speak=False)[0])[-1]

def test_an_engine_that_fails_says_so_and_is_asked_again(visitor, engine):
    chat, *_ = talk(visitor, 'boom')
    assert 'went wrong' in texts(chat)[-1] and 'script' not in texts(chat)[-1]
    chat, *_ = talk(visitor, 'better', speak=False)
    assert 'Turn 1' in texts(chat)[-1]

def test_stop_ends_the_answer_keeps_what_was_said_and_frees_the_turn(page, visitor, engine):
    slow, engine.pause = engine.pause, 0.1
    try:
        send(visitor, 'a long one')
        job = hear(visitor)
        while not any(len(texts(o[0])) == 2 for o in job.outputs()): time.sleep(0.05)
        visitor.predict(api_name='/stop')
        chat, *_ = job.result(20)
    finally: engine.pause = slow
    assert texts(chat)[-1].endswith('*(stopped)*') and engine.running == 0
    chat, *_ = talk(visitor, 'next', speak=False)
    assert 'Turn 2' in texts(chat)[-1] and not texts(chat)[-1].endswith('*(stopped)*')

def test_clear_forgets(visitor):
    talk(visitor, 'remember', speak=False)
    assert visitor.predict(api_name='/clear')[0] == []
    chat, *_ = talk(visitor, 'new', speak=False)
    assert 'Turn 1' in texts(chat)[-1] and 'remember' not in json.dumps(chat)

def test_closing_in_the_middle_frees_the_engine_for_others(page, engine):
    slow, engine.pause = engine.pause, 0.2
    c = gradio_client.Client(page, verbose=False)
    try:
        send(c, 'and then I close the tab')
        job = hear(c)
        while not engine.running: time.sleep(0.02)
        job.cancel()
        t0 = time.monotonic()
        while engine.running and time.monotonic() - t0 < 10: time.sleep(0.05)
        assert engine.running == 0
    finally: engine.pause = slow
    chat, *_ = talk(gradio_client.Client(page, verbose=False), 'me now', speak=False)
    assert 'me now' in texts(chat)[-1]

def test_without_ffmpeg_the_voice_comes_as_one_file():
    with served(ScriptedEngine(pause=0.002), voices={}, examples=[], stream=False) as (url, _):
        chat, voice, *_ = talk(gradio_client.Client(url, verbose=False), 'hello')
        x, rate = read_wav(voice if isinstance(voice, str) else voice['path'])
        assert abs(len(x)/rate - 1.7) < 0.01 and len(files_in(chat, 'assistant')) == 1

# ---- the endpoint for programs

def test_ask_streams_json_with_sound(visitor, tmp_path):
    files = [dict(name='q.wav', data=base64.b64encode(Path(write_sound(tmp_path/'q.wav')).read_bytes()).decode())]
    job = visitor.submit('what', files, True, api_name='/ask')
    last = job.result(60)
    events = job.outputs()
    assert {e['kind'] for e in events} == {'text', 'sound', 'done'} and last['kind'] == 'done'
    said = ''.join(e['text'] for e in events if e['kind'] == 'text')
    assert said == last['text'] == 'Turn 1: audio and text. You wrote: what'
    pieces = [read_wav(io.BytesIO(base64.b64decode(e['wav'])))[0] for e in events if e['kind'] == 'sound']
    whole, rate = read_wav(io.BytesIO(base64.b64decode(last['wav'])))
    assert rate == last['sample_rate'] == 24_000 and np.array_equal(np.concatenate(pieces), whole) and whole.std() > 0.1

@pytest.mark.parametrize('text, files, says', [
    ('', [], 'empty'), ('', [dict(name='a.wav', data='%%%')], 'not base64'),
    ('', [dict(name='../../a.png', data='AAAA')], 'I cannot read a.png'), ('', ['x'], 'needs "name" and "data"')])
def test_ask_refuses_in_one_sentence(visitor, text, files, says):
    with pytest.raises(Exception, match=says): visitor.predict(text, files, True, api_name='/ask')
    assert visitor.predict('ok', [], False, api_name='/ask') is not None
