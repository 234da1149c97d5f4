"""Copies the report card of the shipped checkpoint into README.md: `python -m omni_lite.readme`.

The README quotes no figure of its own; a test compares the two."""
from pathlib import Path

from omni_lite.paths import root

__all__ = ['BEGIN', 'END', 'card_tables', 'put_card', 'main']

BEGIN, END = '<!-- report:begin -->', '<!-- report:end -->'

def card_tables(
    report:Path, # report.md of a checkpoint
) -> str: # all its tables but the examples
    "Abilities, speeds and stages as the report wrote them."
    return report.read_text().split('\n\n| asked |')[0].strip()

def put_card(
    text:str, # README with the two marks
    tables:str, # what goes between them
) -> str: # README with the tables
    "Replace what stands between the marks."
    head, rest = text.split(BEGIN)
    return f'{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}'

def main() -> None:
    "Write the shipped checkpoint's card into README.md."
    readme = root()/'README.md'
    readme.write_text(put_card(readme.read_text(), card_tables(root()/'checkpoints'/'nano'/'report.md')))

if __name__ == '__main__': main()
