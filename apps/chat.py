"""The omni chat: a thin Gradio page over one engine. `python apps/chat.py` opens it on 127.0.0.1."""
import base64, colorsys, hashlib, html, io, shutil, socket, subprocess, sys, tempfile, threading, time, traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path: sys.path.insert(0, str(ROOT))

from omni_lite.paths import cache_dir, go_offline, scripts_on_path
go_offline()
import gradio as gr
import numpy as np

from omni_lite.serve.engine import (MAX_BYTES, Engine, OneAtATime, Sense, check_message, limits_text,
                                    load_engine, recent, wav_bytes)

FIRST_CHUNK, CHUNK, REDRAW = 0.1, 0.2, 0.1   # seconds: first and later pieces of sound, time between redraws
TYPED = 'Typed questions stay text'
ASLEEP = 'Ask something: what you send and what comes back shows here while it happens.'

# ---- ffmpeg: streamed sound needs the program, all else does not

def has_ffmpeg() -> bool: # True when an `ffmpeg` that runs is on PATH
    "Find ffmpeg (system, this environment's programs, or the one inside imageio-ffmpeg) and try it once."
    scripts_on_path()
    if not shutil.which('ffmpeg'):
        try:
            import imageio_ffmpeg, os
            folder = Path(tempfile.mkdtemp(prefix='omni_lite_ffmpeg_'))
            (folder/'ffmpeg').symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
            os.environ['PATH'] += os.pathsep + str(folder)
        except Exception: return False
    try: return subprocess.run(['ffmpeg', '-version'], capture_output=True, timeout=20).returncode == 0
    except Exception: return False

# ---- one visitor

@dataclass
class Visit:
    "What one open page knows; nothing here is shared with another page."
    messages:list = field(default_factory=list)  # for the model
    shown:list = field(default_factory=list)     # for the chat window
    turn:int = 0                                 # grows at every question, stop and clear: older answers then end
    halted:bool = False                          # stop was pressed after the last question

    def interrupt(self, halt=True):
        self.turn += 1
        self.halted = halt

def _say(visit, role, content): visit.shown.append({'role':role, 'content':content})

def _file(path): return {'path':str(path)}

# ---- what the panel draws

def _uri(im, side=96):
    im = im.convert('RGB')
    im.thumbnail((side, side))
    out = io.BytesIO()
    im.save(out, 'JPEG', quality=80)
    return 'data:image/jpeg;base64,' + base64.b64encode(out.getvalue()).decode()

def _wave(x, bars=72, height=36):
    "Loudness over time as bars of an SVG."
    peaks = np.array([np.abs(c).max() if len(c) else 0 for c in np.array_split(x, bars)])
    peaks = peaks/max(peaks.max(), 1e-6)
    rects = ''.join(f'<rect x="{4*i}" y="{height*(1-p)/2:.1f}" width="3" height="{max(1, height*p):.1f}" rx="1"/>'
                    for i, p in enumerate(peaks))
    return f'<svg viewBox="0 0 {4*bars} {height}" preserveAspectRatio="none" class="wave">{rects}</svg>'

def draw_senses(
    senses:list[Sense],            # from `check_message`
    tokens:dict|None=None,         # modality -> tokens in the prompt, where the engine can count them
) -> str: # HTML
    "The message as the model gets it: waveform, picture, one frame a second, words."
    if not senses: return f'<div class="asleep">{ASLEEP}</div>'
    word, rows = dict(text='read', image='seen', audio='heard', video='watched'), []
    for s in senses:
        if s.kind == 'text': body = f'<q>{html.escape(s.name[:160])}</q>'
        elif s.kind == 'audio': body = _wave(s.media)
        else:
            ims = [s.media] if s.kind == 'image' else s.media[:10]
            body = ''.join(f'<img src="{_uri(i)}" alt="">' for i in ims)
        rows.append(f'<div class="sense {s.kind}"><b>{word[s.kind]}</b><span>{html.escape(s.detail)}</span>'
                    f'<div>{body}</div></div>')
    counts = ' · '.join(f'{n} {k} tokens' for k, n in (tokens or {}).items() if n)
    if counts: rows.append(f'<div class="count">{counts}</div>')
    return ''.join(rows)

@dataclass
class Strip:
    "The answer as it streams: a chip for each piece of text, a cell for each 80 ms frame of sound."
    cells:list = field(default_factory=list)
    num_text:int = 0
    num_frames:int = 0

    def text(self, piece:str):
        self.num_text += 1
        if piece.strip(): self.cells.append(f'<span>{html.escape(piece.strip())}</span>')

    def frame(self, codes):
        self.num_frames += 1
        code = 0 if codes is None else int(np.asarray(codes).reshape(-1)[0])
        r, g, b = (int(255*v) for v in colorsys.hls_to_rgb(code*0.618 % 1, 0.58, 0.62))
        self.cells.append(f'<i style="background:#{r:02x}{g:02x}{b:02x}" title="level 1: code {code}"></i>')

    def html(self) -> str:
        if not self.cells: return f'<div class="asleep">{ASLEEP}</div>'
        return (f'<div class="strip">{"".join(self.cells[-400:])}</div><div class="count">{self.num_text} pieces of '
                f'text · {self.num_frames} frames of sound ({self.num_frames*0.08:.1f} s)</div>')

def timings_line(
    timings:dict,  # first_text_s, first_sound_s, rtf, speech_s; any may be missing
) -> str: # markdown
    "How fast the answer came, in one line."
    t = timings
    parts = [f"first text {t['first_text_s']:.2f} s" if t.get('first_text_s') is not None else '',
             f"first sound {t['first_sound_s']:.2f} s" if t.get('first_sound_s') is not None else '',
             f"{t['speech_s']:.1f} s of speech" if t.get('speech_s') else '',
             f"real-time factor {t['rtf']:.2f}" if t.get('rtf') is not None else '']
    return ' · '.join(p for p in parts if p)

# ---- voices of the asker and examples: made, never recorded

def asker_voices() -> dict[str, Callable[[str], tuple[np.ndarray, int]]]: # name -> (text -> sound, rate)
    "Voices that can read a typed question aloud; empty where no voice package has been fetched."
    try:
        from omni_lite.fetch import fetched
        if not fetched('hibari'): return {}
        from omni_lite.data.speech import HIBARI_VOICES, SAMPLE_RATE, TEST_VOICES, Hibari
    except ImportError: return {}
    hibari, lock = [], threading.Lock()
    def reader(voice):
        def read(text):
            with lock:
                if not hibari: hibari.append(Hibari())
                return np.asarray(hibari[0](text, voice=voice).wav, np.float32), SAMPLE_RATE
        return read
    return {v + (' (never heard in training)' if v in TEST_VOICES else ''): reader(v) for v in HIBARI_VOICES}

EXAMPLES = [ # label, family of the small world, whether its question is spoken
    ('Text', 'opposite', False), ('Spoken question', 'color', True), ('Picture', 'thing', False),
    ('Picture, asked aloud', 'side', True), ('Clip', 'motion', False), ('Sound', 'sound', False)]
REAL = [('A photograph', 'what is this?', 'photo*'), ('A person speaks', '', 'speech/person*.wav')]

def make_examples(
    voices:dict,               # from `asker_voices`; the first one speaks
    folder:Path|None=None,     # where they are kept; None: the cache folder
) -> list[tuple[str, str, list[str]]]: # (label, text, files)
    "Questions of every kind, held out of training: drawn from the small world once, and the real samples."
    folder, found = Path(folder or cache_dir()/'chat_examples'), []
    for label, name, aloud in EXAMPLES:
        try: found.append((label, *_example(folder, name, next(iter(voices.values())) if aloud else None)))
        except StopIteration: pass # nobody to speak it
        except Exception as e: print(f'no example "{label}": {e}', file=sys.stderr)
    for label, text, pattern in REAL:
        hit = sorted((ROOT/'data_samples').glob(pattern))
        if hit: found.append((label, text, [str(hit[0])]))
    return found

def _example(folder, family, speak):
    "One held-out question of a family: (text, files). Files that are there already are not made again."
    from omni_lite.data.world import World, render_picture, render_sound, write_clip
    sample = World('small').sample(family, 'test', 3)
    folder = folder/hashlib.sha256(repr(sample).encode()).hexdigest()[:8] # another sample never meets old files
    folder.mkdir(parents=True, exist_ok=True)
    def make(ending, write):
        path = folder/f'{family}{ending}'
        if not path.exists():
            part = folder/f'part_{family}{ending}'
            write(part)
            part.replace(path)
        return str(path)
    def wav(sound): return lambda p: p.write_bytes(wav_bytes(*sound()))
    files = []
    if sample.image: files.append(make('.png', lambda p: render_picture(sample.image, 224).save(p)))
    if sample.clip: files.append(make('.mp4', lambda p: write_clip(sample.clip, p)))
    if sample.sound: files.append(make('.wav', wav(lambda: (render_sound(sample.sound, 24_000), 24_000))))
    if speak: files.append(make('_question.wav', wav(lambda: speak(sample.question))))
    return '' if speak else sample.question, files

# ---- the page

CSS = """
.gradio-container {max-width: 1500px !important; margin: 0 auto !important; padding: 8px 24px !important}
:root, .gradio-container {--body-text-color-subdued: #56637a; --layout-gap: 10px}
.dark, .dark .gradio-container {--body-text-color-subdued: #9aa8bd}
#title {display: flex; align-items: baseline; gap: 16px; flex-wrap: wrap}
#title h1 {font-size: 1.6rem; margin: 0} #title p {margin: 0; color: var(--body-text-color-subdued); font-size: 1.05rem}
#chat .message {font-size: 1.15rem} #chat button[aria-label="Share"] {display: none}
#chat .message img, #chat .message video {max-height: 130px !important; width: auto !important; border-radius: 8px}
#controls {align-items: center} #controls button {font-size: 1rem}
.panel-title {font-weight: 600; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; margin: 0 0 6px 2px;
  color: var(--body-text-color-subdued)}
.card {background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); border-radius: 10px;
  padding: 10px 12px; min-height: 48px}
#senses .html-container, #strip .html-container {padding: 0 !important}
#strip .card {min-height: 96px}
.asleep {color: var(--body-text-color-subdued); font-size: .98rem}
.sense {display: grid; grid-template-columns: 68px 1fr; gap: 0 10px; align-items: baseline; padding: 2px 0 2px 10px;
  border-left: 4px solid var(--c); margin-bottom: 7px}
.sense b {color: var(--c)} .sense > span {color: var(--body-text-color-subdued); font-size: .9rem}
.sense > div {grid-column: 1/-1}
.sense.text {--c: #475569} .sense.image {--c: #b45309} .sense.audio {--c: #0f766e} .sense.video {--c: #6d28d9}
.dark .sense.text {--c: #cbd5e1} .dark .sense.image {--c: #fbbf24} .dark .sense.audio {--c: #2dd4bf}
.dark .sense.video {--c: #c4b5fd}
.sense q {font-size: 1.05rem} .sense img {height: 54px; border-radius: 6px; display: inline-block; margin: 3px 6px 0 0}
.wave {width: 100%; height: 30px; fill: var(--c); margin-top: 3px}
.strip {display: flex; flex-wrap: wrap; gap: 3px; align-items: center}
.strip span {background: #1e3a5f; color: #fff; border-radius: 5px; padding: 1px 7px; font-size: 1rem}
.strip i {display: inline-block; width: 9px; height: 22px; border-radius: 2px}
.count {color: var(--body-text-color-subdued); font-size: .9rem; margin-top: 7px}
#timings {font-variant-numeric: tabular-nums; font-size: 1rem; min-height: 1.6em}
footer {display: none !important}
"""
def _card(title): return f'<p class="panel-title">{title}</p><div class="card">${{value}}</div>'

HUSH = "() => { document.querySelectorAll('audio').forEach(a => a.pause()) }"

def look() -> dict: # keyword arguments of `launch`
    "Theme and style of the page; system fonts, nothing fetched."
    font = ['ui-sans-serif', 'system-ui', 'Segoe UI', 'Roboto', 'Noto Sans', 'sans-serif']
    return dict(css=CSS, theme=gr.themes.Default(primary_hue='teal', neutral_hue='slate', font=font,
                                                 font_mono=['ui-monospace', 'monospace'], radius_size='lg'))

def build(
    engine:Engine,              # what answers
    max_seconds:float=10.,      # longest spoken answer
    voices:dict|None=None,      # name -> (text -> (sound, rate)); None: those that are installed
    examples:list|None=None,    # (label, text, files); None: made, and kept in the cache
    stream:bool|None=None,      # play while it is made; None: where ffmpeg is found
) -> gr.Blocks: # launch it with `**look()`
    "The chat page and its `/ask` endpoint over one engine."
    door = engine if isinstance(engine, OneAtATime) else OneAtATime(engine)
    voices = asker_voices() if voices is None else voices
    examples = make_examples(voices) if examples is None else examples
    stream = has_ffmpeg() if stream is None else stream
    pages:dict[str, Visit] = {}   # open pages, so that a closed tab ends its answer
    clips = tempfile.TemporaryDirectory(prefix='omni_lite_answers_')

    def count(messages):
        try: return engine.count_tokens(messages)
        except Exception: return None

    def save(sound, rate):
        with tempfile.NamedTemporaryFile(dir=clips.name, suffix='.wav', delete=False) as f:
            f.write(wav_bytes(sound, rate))
        return f.name

    def read_aloud(box, voice):
        "A typed question as speech: the textbox value with the text turned into a sound file."
        text = (box.get('text') or '').strip()
        if not text or voice not in voices: return box, None
        sound, rate = voices[voice](text)
        path = save(sound, rate)
        return dict(text='', files=[*box.get('files', []), path]), text

    def take(box:dict, voice:str, visit:Visit, request:gr.Request):
        "Let a message in; the answer follows in the next step."
        pages[request.session_hash] = visit
        visit.interrupt(halt=False)
        box = box or {}
        box = dict(text=box.get('text') or '', files=list(box.get('files') or []))
        names = [Path(f if isinstance(f, str) else f.get('path', '')).name for f in box['files']]
        try:
            asked, read = read_aloud(box, voice)
            checked = check_message(asked)
        except ValueError as e: return refuse(visit, box, names, str(e))
        except Exception:
            traceback.print_exc()
            return refuse(visit, box, names, 'That message could not be read; please try another file.')
        for f in asked['files']: _say(visit, 'user', _file(f))
        if read or box['text']: _say(visit, 'user', f'*{_plain(read)}*' if read else _plain(box['text']))
        for n in checked.notices: _say(visit, 'assistant', n)
        visit.messages.append({'role':'user', 'content':checked.parts})
        return visit.shown, gr.MultimodalTextbox(value=None), draw_senses(checked.senses, count(visit.messages)), visit

    def refuse(visit, box, names, why):
        shown = ' '.join([*(f'[{n}]' for n in names), box['text']]).strip()
        if shown: _say(visit, 'user', _plain(shown))
        _say(visit, 'assistant', _plain(why))
        return visit.shown, gr.MultimodalTextbox(value=dict(text=box['text'], files=[])), draw_senses([]), visit

    def answer(speak:bool, visit:Visit, request:gr.Request):
        "Stream the answer to the newest message: chat, voice, strip, timings."
        pages[request.session_hash] = visit
        if not visit.messages or visit.messages[-1]['role'] != 'user' or visit.halted:
            yield visit.shown, None, gr.skip(), gr.skip()
            return
        asked, mine = recent(visit.messages), visit.turn
        question, reply = visit.messages[-1], {'role':'assistant', 'content':[{'type':'text', 'text':''}]}
        bubble = {'role':'assistant', 'content':['…']}
        visit.messages.append(reply)
        visit.shown.append(bubble)
        strip, sounds, text, timings, wait, error = Strip(), [], '', {}, FIRST_CHUNK, None
        t0 = drawn = time.perf_counter()
        events = door.reply(asked, speak=speak, seed=visit.turn, max_seconds=max_seconds,
                            alive=lambda: visit.turn == mine)
        new, ready = [], 0.  # sound not yet sent, its length in seconds
        def piece():
            nonlocal new, ready, wait
            out, new, ready, wait = np.concatenate(new), [], 0., CHUNK
            return wav_bytes(out, door.sample_rate) if stream else None
        try:
            yield visit.shown, None, strip.html(), ''
            for ev in events:
                chat = sound = gr.skip()
                sound = None
                if ev.kind == 'text':
                    timings.setdefault('first_text_s', time.perf_counter() - t0)
                    text += ev.text
                    strip.text(ev.text)
                    reply['content'][0]['text'] = text
                    bubble['content'] = [_plain(text)]
                    chat = visit.shown
                elif ev.kind == 'frame': strip.frame(ev.codes)
                elif ev.kind == 'sound':
                    x = np.asarray(ev.sound, np.float32).reshape(-1)
                    sounds.append(x)
                    new.append(x)
                    ready += len(x)/door.sample_rate
                    if ready >= wait:
                        timings.setdefault('first_sound_s', time.perf_counter() - t0)
                        sound = piece()
                elif ev.kind == 'done':
                    timings |= {k:v for k, v in (ev.timings or {}).items() if v is not None}
                    text = reply['content'][0]['text'] = ev.text or text
                now = time.perf_counter()
                if chat is visit.shown or sound is not None or now - drawn > REDRAW:
                    drawn = now
                    yield chat, sound, strip.html(), gr.skip()
        except ValueError as e: error = str(e)
        except Exception:
            traceback.print_exc()
            error = 'Something went wrong while I was answering; please ask again.'
        finally: events.close()
        if error: # a question that failed must not spoil the next one
            visit.messages[:] = [m for m in visit.messages if m is not question and m is not reply]
            bubble['content'] = [_plain(error)]
            yield visit.shown, None, strip.html(), ''
            return
        whole, stopped = (np.concatenate(sounds) if sounds else None), visit.turn != mine
        last = piece() if new else None
        bubble['content'] = [_plain(text) + (' *(stopped)*' if stopped else '') or '*(no words)*']
        if whole is not None:
            seconds = len(whole)/door.sample_rate
            timings['speech_s'] = seconds
            timings.setdefault('rtf', (time.perf_counter() - t0)/seconds)
            bubble['content'].append(_file(save(whole, door.sample_rate)))
            if not stream: last = wav_bytes(whole, door.sample_rate) # bytes: a path would be probed with ffprobe
        yield visit.shown, None if stopped and stream else last, strip.html(), timings_line(timings)

    def ask(text: str, files: list[dict], speak: bool) -> Iterator[dict]:
        """For programs: one question, the answer as a stream of JSON events.

        files: [{"name": "q.wav", "data": base64}]. Events: {"kind": "text", "text"}, {"kind": "sound", "wav": base64},
        {"kind": "done", "text", "wav": base64 of the whole, "sample_rate", "timings"}."""
        with tempfile.TemporaryDirectory(prefix='omni_lite_ask_') as folder:
            try:
                paths = [_unpack(f, Path(folder)/str(i), i) for i, f in enumerate(files or [])]
                checked = check_message(dict(text=text, files=paths))
            except ValueError as e: raise gr.Error(str(e), print_exception=False) from None
            events = door.reply([{'role':'user', 'content':checked.parts}], speak=bool(speak), max_seconds=max_seconds)
            sounds, said, timings = [], '', {}
            for n in checked.notices: yield dict(kind='notice', text=n)
            try:
                for ev in events:
                    if ev.kind == 'text':
                        said += ev.text
                        yield dict(kind='text', text=ev.text)
                    elif ev.kind == 'sound':
                        sounds.append(np.asarray(ev.sound, np.float32).reshape(-1))
                        yield dict(kind='sound', wav=_b64(wav_bytes(sounds[-1], door.sample_rate)))
                    elif ev.kind == 'done': said, timings = ev.text or said, ev.timings or {}
            except ValueError as e: raise gr.Error(str(e), print_exception=False) from None
            finally: events.close()
            timings = {k:v if v is None or isinstance(v, str) else float(v) for k, v in timings.items()}
            whole = _b64(wav_bytes(np.concatenate(sounds), door.sample_rate)) if sounds else ''
            yield dict(kind='done', text=said, wav=whole, sample_rate=door.sample_rate, timings=timings)

    def stop(visit:Visit): visit.interrupt()

    def clear(visit:Visit):
        visit.interrupt()
        visit.messages, visit.shown = [], []
        return [], None, draw_senses([]), Strip().html(), '', visit

    def gone(request:gr.Request):
        if (visit := pages.pop(request.session_hash, None)): visit.interrupt()

    def from_camera(box, photo, clip):
        box = box or {}
        files = [*(box.get('files') or []), *(p for p in (photo, clip) if p)]
        return dict(text=box.get('text') or '', files=files), None, None

    with gr.Blocks(title='omni_lite chat', delete_cache=(3600, 24*3600), analytics_enabled=False) as page:
        page.answers = clips # lives as long as the page
        visit = gr.State(Visit())
        gr.HTML('<div id="title"><h1>omni_lite</h1><p>Hears, sees, thinks and speaks. Every weight was trained on a '
                'laptop: a small model of a small world.</p></div>')
        with gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=420):
                chat = gr.Chatbot(label='Chat', show_label=False, height='58vh', min_height=320, elem_id='chat',
                                  layout='bubble', buttons=[], latex_delimiters=[], feedback_options=None,
                                  placeholder='### Ask in text, by voice, with a picture or a clip\n'
                                              'or pick an example below')
                box = gr.MultimodalTextbox(show_label=False, file_count='multiple', sources=['upload', 'microphone'],
                                           elem_id='box', file_types=['image', 'audio', 'video'], autofocus=True,
                                           max_plain_text_length=2000,
                                           placeholder='Type, speak, or drop pictures, sounds and clips')
                with gr.Row(elem_id='controls'):
                    speak = gr.Checkbox(True, label='Answer aloud', elem_id='speak', min_width=140, container=False)
                    voice = gr.Dropdown([TYPED, *((f'Voice of the asker: {v}', v) for v in voices)], value=TYPED,
                                        label='Voice of the asker', elem_id='voice', container=False, scale=2,
                                        visible=bool(voices), min_width=240)
                    halt = gr.Button('Stop', elem_id='stop', min_width=90, variant='secondary')
                    wipe = gr.Button('Clear', elem_id='clear', min_width=90, variant='secondary')
                if examples:
                    gr.Examples([[dict(text=t, files=f)] for _, t, f in examples], inputs=[box], label='Examples',
                                example_labels=[label for label, _, _ in examples])
            with gr.Column(scale=4, min_width=340):
                senses = gr.HTML(draw_senses([]), elem_id='senses', html_template=_card('What the model was given'))
                strip = gr.HTML(Strip().html(), elem_id='strip', html_template=_card('The answer as it streams'))
                player = gr.Audio(streaming=stream, autoplay=True, interactive=False, elem_id='player', buttons=[],
                                  label='Voice, played while it is made' if stream else
                                        'Voice (ffmpeg is missing: played when it is whole)')
                timings = gr.Markdown('', elem_id='timings')
                with gr.Accordion('Camera', open=False, elem_id='camera'):
                    cam = dict(sources=['webcam'], show_label=False, height=220, interactive=True,
                               webcam_options=gr.WebcamOptions(mirror=False))
                    with gr.Tab('Picture'): photo = gr.Image(type='filepath', **cam)
                    with gr.Tab('Clip'): clip = gr.Video(include_audio=True, **cam)
                    add = gr.Button('Add to the message', elem_id='add')
                with gr.Accordion('What it cannot do', open=False, elem_id='limits'): gr.Markdown(limits_text(engine))
        sent = box.submit(take, [box, voice, visit], [chat, box, senses, visit], api_name='take',
                          concurrency_limit=8, show_progress='hidden', trigger_mode='multiple')
        sent.then(answer, [speak, visit], [chat, player, strip, timings], api_name='answer', concurrency_limit=1,
                  concurrency_id='engine', show_progress='minimal', show_progress_on=[strip], trigger_mode='multiple')
        halt.click(stop, [visit], None, api_name='stop', queue=False, js=HUSH)
        gr.on([wipe.click, chat.clear], clear, [visit], [chat, player, senses, strip, timings, visit], api_name='clear',
              queue=False, js=HUSH)
        add.click(from_camera, [box, photo, clip], [box, photo, clip], api_visibility='private')
        page.unload(gone)
        gr.api(ask, api_name='ask', concurrency_limit=1, concurrency_id='engine')
    page.queue(default_concurrency_limit=4, max_size=64)
    return page

def _plain(text):
    "Text as it is: no markdown, no HTML."
    for c in '\\`*_{}[]<>#|~$': text = text.replace(c, {'<':'&lt;', '>':'&gt;'}.get(c, '\\' + c))
    return text

def _b64(data): return base64.b64encode(data).decode()

def _unpack(f, folder, i):
    "One base64 file of `/ask` as a file on disk."
    name = Path(str(f.get('name') if isinstance(f, dict) else '') or f'file{i}').name
    data = f.get('data') if isinstance(f, dict) else None
    if not isinstance(data, str): raise ValueError(f'{name} needs "name" and "data" (base64).')
    if len(data) > MAX_BYTES*4//3 + 4:
        raise ValueError(f'{name} is larger than {MAX_BYTES//2**20} MB; please send a smaller file.')
    try: raw = base64.b64decode(data.partition(',')[2] if data.startswith('data:') else data, validate=True)
    except Exception: raise ValueError(f'{name} is not base64; please encode the bytes of the file.') from None
    folder.mkdir()
    (folder/name).write_bytes(raw)
    return str(folder/name)

def free_port(
    port:int,               # the one that is wanted
    host:str='127.0.0.1',   # address to listen on
    tries:int=50,           # ports to look at
) -> int: # the first free one from there on
    "A port nobody listens on."
    for p in range(port, port + tries):
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try: s.bind((host, p))
            except OSError: continue
            return p
    raise ValueError(f'Ports {port} to {port + tries - 1} are all taken: name another with --port.')

def main(
    port:int=7860,            # on 127.0.0.1; the next free one if it is taken
    open_browser:bool=True,   # show the page
    folder:str|None=None,     # checkpoint; None: the one that ships
    host:str='127.0.0.1',     # address to listen on
) -> None:
    "Open the chat on this machine only; end it with Ctrl-C."
    engine = load_engine(folder)
    def warm():
        try: engine.load()
        except Exception as e: print(f'The model could not be read yet: {e}', file=sys.stderr)
    threading.Thread(target=warm, daemon=True).start() # the page opens while the model is read
    page = build(engine)
    opts = dict(server_name=host, share=False, inbrowser=open_browser, max_file_size='200mb', quiet=True,
                footer_links=[], **look())
    port = free_port(port, host)
    print(f'omni_lite chat: http://{host}:{port} (this machine only; Ctrl-C ends it)' if host == '127.0.0.1' else
          f'omni_lite chat: http://{host}:{port} (others can reach it; Ctrl-C ends it)', flush=True)
    page.launch(server_port=port, **opts)

if __name__ == '__main__':
    import argparse
    p = argparse.ArgumentParser(description='Open the omni chat on 127.0.0.1.')
    p.add_argument('--model', default=None, help='checkpoint folder (default: the one that ships)')
    p.add_argument('--host', default='127.0.0.1', help='address to listen on; only this machine by default')
    p.add_argument('--port', type=int, default=7860)
    p.add_argument('--browser', action='store_true', help='open the page')
    a = p.parse_args()
    main(a.port, a.browser, a.model, a.host)
