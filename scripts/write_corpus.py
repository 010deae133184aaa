"""Write corpus and evaluation sets: ``python -m scripts.write_corpus FOLDER``."""

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from edutools.corpus import counterfact_records, documents, text_of, zsre_records
from edutools.world import build_world


def main(arguments: Sequence[str] | None = None) -> None:
    """Write corpus.txt, counterfact.json and zsre.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go; made if missing")
    parser.add_argument(
        "--documents", type=int, default=100_000, help="length of corpus.txt"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order of the documents"
    )
    args = parser.parse_args(arguments)
    world = build_world()
    args.folder.mkdir(parents=True, exist_ok=True)
    chosen = islice(documents(world, seed=args.seed), args.documents)
    with (args.folder / "corpus.txt").open("w", encoding="utf-8") as out:
        for document in tqdm(chosen, total=args.documents):
            out.write(text_of(document) + "\n")
    sets = {"counterfact": counterfact_records(world), "zsre": zsre_records(world)}
    for name, records in sets.items():
        text = json.dumps(records, indent=1, ensure_ascii=False)
        (args.folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
