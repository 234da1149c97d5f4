"""The chat page in a headless Chromium: a spoken question, a picture and a clip go in; text and real sound come out.

A scripted engine always answers; the checkpoint that ships answers too where it is there."""
import io, shutil, time

import numpy as np, pytest

from scripted import ROOT, ScriptedEngine, served, write_movie, write_picture, write_sound

from omni_lite.paths import shipped
from omni_lite.serve.engine import load_engine

pytestmark = pytest.mark.browser
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
if not CHROMIUM: pytest.skip('no Chromium on PATH: apt-get install chromium', allow_module_level=True)
sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is missing: pip install omni_lite[dev]')
pytest.importorskip('gradio', reason='the chat page needs gradio: pip install omni_lite[apps]')

from apps.chat import has_ffmpeg
if not has_ffmpeg(): pytest.skip('streamed sound needs ffmpeg: pip install imageio-ffmpeg', allow_module_level=True)

ARTIFACTS = ROOT/'tests'/'artifacts'
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync --use-fake-device-for-media-stream '
         '--use-fake-ui-for-media-stream --autoplay-policy=no-user-gesture-required').split()

ENGINES = ['scripted', *(['nano'] if (shipped('nano')/'config.json').exists() else [])]

@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

@pytest.fixture(scope='module', params=ENGINES)
def address(request):
    engine = ScriptedEngine(pause=0.05) if request.param == 'scripted' else load_engine().load()
    with served(engine) as (url, _): yield request.param, url

@pytest.fixture
def page(browser, address):
    context = browser.new_context(permissions=['microphone', 'camera'], viewport=dict(width=1440, height=900))
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.outside, page.broken, page.waves = [], [], []
    ours = (address[1], 'data:', 'blob:')
    page.on('request', lambda r: None if r.url.startswith(ours) else page.outside.append(r.url))
    page.on('request', lambda r: page.waves.append(r.url) if r.url.endswith('.wav') else None)
    page.on('pageerror', lambda e: page.broken.append(str(e)))
    page.goto(address[1])
    page.wait_for_selector('#box textarea')
    yield page
    assert page.outside == [], 'the page asked for something outside this machine'
    assert page.broken == []
    context.close()

def until(page, what, seconds=60, every=100):
    "The first true value of `what()`."
    t0 = time.monotonic()
    while time.monotonic() - t0 < seconds:
        if (got := what()): return got
        page.wait_for_timeout(every)
    raise AssertionError(f'nothing came within {seconds} s')

def bot(page): return page.locator('#chat .bot.message')
def said(page): return bot(page).last.inner_text().strip() if bot(page).count() else ''
def played(page):
    return page.evaluate("Math.max(0, ...[...document.querySelectorAll('#player audio')].map(a => a.currentTime))")
def done(page): return until(page, lambda: page.locator('#timings').inner_text().strip())
def attach(page, files):
    page.locator('#box input[type=file]').first.set_input_files(files)
    until(page, lambda: page.locator('#box .thumbnail-item').count() == len(files))
def write(page, text):
    page.locator('#box textarea').fill(text)
    page.locator('#box textarea').press('Enter')

def delivered(page):
    "The whole answer's sound as the chat offers it: (samples, rate)."
    import soundfile as sf
    assert bot(page).last.locator('[data-testid=waveform-Audio]').count(), 'the answer has no player'
    url = until(page, lambda: [u for u in page.waves if 'question' not in u])[-1] # what the chat's player fetched
    return sf.read(io.BytesIO(page.request.get(url).body()), dtype='float32')

def test_sound_picture_and_clip_in_text_and_real_sound_out(page, address, tmp_path):
    attach(page, [write_sound(tmp_path/'question.wav', 1.5), write_picture(tmp_path/'picture.png'),
                  write_movie(tmp_path/'clip.mp4')])
    write(page, 'what do you see and hear?')
    first = until(page, lambda: said(page).strip('…'))
    line = done(page)
    assert 'first text' in line and 'real-time factor' in line
    if address[0] == 'scripted':
        assert said(page).startswith('Turn 1: audio and image and video and audio and text.')
        assert len(said(page)) > len(first)
    assert page.locator('#senses .sense').count() == 4 and page.locator('#senses .sense.video img').count() == 3
    assert page.locator('#strip .strip span').count() and page.locator('#strip .strip i').count()
    a = until(page, lambda: played(page))
    b = until(page, lambda: played(page) > a + 0.3 and played(page))
    x, rate = delivered(page)
    rms = float(np.sqrt(np.mean(x**2)))
    assert rate == 24_000 and len(x) > 0.3*rate and rms > 0.005 and np.abs(x).max() <= 1, rms
    assert b <= len(x)/rate + 0.3
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS/('chat.png' if address[0] == 'scripted' else f'chat_{address[0]}.png'))

def test_microphone_records_and_is_heard(page, address):
    page.locator('#box [data-testid=microphone-button]').click()
    page.get_by_label('Start recording').click()
    page.get_by_label('Stop recording').wait_for()
    page.wait_for_timeout(2500) # the fake device beeps once a second
    page.get_by_label('Stop recording').click()
    page.get_by_label('Attach audio').click()
    until(page, lambda: page.locator('#box .thumbnail-item').count())
    page.locator('#box [data-testid=submit-button]').click()
    done(page)
    assert page.locator('#senses .sense.audio').count() == 1 and said(page)

def test_camera_adds_a_picture_to_the_message(page):
    page.locator('#camera button').first.click()
    for _ in range(3): # allow the camera, then take the picture
        if page.locator('#camera img[src*="/file="]').count(): break
        page.locator('#camera .image-container button:visible').first.click()
        page.wait_for_timeout(1500)
    page.locator('#add').click()
    until(page, lambda: page.locator('#box .thumbnail-item').count() == 1)
    write(page, 'what is this?')
    done(page)
    assert page.locator('#senses .sense.image').count() == 1

def test_a_broken_file_gets_one_sentence_and_the_next_question_an_answer(page, tmp_path):
    (tmp_path/'broken.mp4').write_bytes(b'nothing'*99)
    attach(page, [str(tmp_path/'broken.mp4')])
    write(page, '')
    until(page, lambda: 'cannot read broken.mp4' in said(page))
    write(page, 'and now?')
    done(page)
    assert bot(page).count() == 2

def test_stop_and_clear(page, address):
    write(page, 'tell me something long please')
    until(page, lambda: said(page).strip('…'))
    page.locator('#stop').click()
    done(page)
    page.locator('#clear').click()
    until(page, lambda: bot(page).count() == 0)
    assert page.locator('#strip .strip').count() == 0

def test_closing_the_tab_in_the_middle_leaves_the_next_visitor_a_free_engine(browser, page, address):
    other = browser.new_context().new_page()
    other.goto(address[1])
    other.wait_for_selector('#box textarea')
    other.locator('#box textarea').fill('I will be gone soon')
    other.locator('#box textarea').press('Enter')
    until(other, lambda: bot(other).count())
    other.context.close()
    write(page, 'my turn')
    done(page)
    assert 'gone soon' not in page.locator('#chat').inner_text()

def test_examples_and_limits_are_on_the_page(page):
    page.locator('#limits button').first.click()
    until(page, lambda: len(page.locator('#limits').inner_text()) > 60)
    page.get_by_text('Text', exact=True).first.click()
    until(page, lambda: page.locator('#box textarea').input_value())
