"""Which text spaces does the coordinator hand out: the newest run's, and every earlier one by its hash."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import asdict
from pathlib import Path

from dsm_core.config import TextConfig
from dsm_core.durable import replace_file
from dsm_core.text_encoders import TextEncoder, load_phrase_encoder
from dsm_core.text_space import TextSpace, TextSpaceError

BANKS = "banks"  # its folder in the consortium's
_CURRENT = "current"
_HASH = re.compile(r"[0-9a-f]{64}")
_KEPT = 8  # text spaces held in memory


class Banks:
    """Text spaces in a folder, one file each, named by content hash; `current` names the newest.

    The server of a run puts its text space here and another process serves it, so nothing is assumed to stay.
    """

    def __init__(self, folder: Path) -> None:
        """Open or make the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._held: dict[str, TextSpace] = {}
        self._encoders: dict[str, TextEncoder] = {}
        self._lock = threading.Lock()

    def put(self, space: TextSpace, config: TextConfig | None = None) -> None:
        """Keep a text space and make it the current one; a reader finds the old one or the new one.

        Args:
            config: the encoder that made it, for phrases that it does not hold; it is loaded when first needed.
        """
        if config is not None:
            content = json.dumps(asdict(config.with_absolute_paths()))
            replace_file(self._path(space.hash, ".json"), content.encode())
        if not self._path(space.hash).is_file():
            space.save(self._path(space.hash))
        replace_file(self.folder / _CURRENT, space.hash.encode())

    def current_hash(self) -> str:
        """Hash of the current text space; empty before there is one."""
        try:
            return (self.folder / _CURRENT).read_text().strip()
        except FileNotFoundError:
            return ""

    def get(self, bank_hash: str) -> TextSpace | None:
        """The text space of this hash; None where the coordinator never had it.

        Raises:
            TextSpaceError: its file is damaged, or the configured encoder did not make it.
        """
        if not _HASH.fullmatch(bank_hash) or not self._path(bank_hash).is_file():
            return None
        with self._lock:
            if bank_hash not in self._held:
                space = TextSpace.load(self._path(bank_hash))
                if space.hash != bank_hash:
                    raise TextSpaceError(f"the file of text space {bank_hash[:12]} holds {space.hash[:12]}")
                self._held = dict([*self._held.items(), (bank_hash, space)][-_KEPT:])
            return self._held[bank_hash]

    def able_to_encode(self, space: TextSpace) -> TextSpace:
        """The text space with the encoder that made it, where the coordinator knows that one.

        Raises:
            TextSpaceError: the encoder cannot be loaded, or did not make this text space.
        """
        path = self._path(space.hash, ".json")
        if space.phrase_encoder is not None or not path.is_file():
            return space
        config = path.read_text()
        with self._lock:
            if config not in self._encoders:
                self._encoders = {
                    config: load_phrase_encoder(TextConfig(**json.loads(config)))
                }  # one at a time: it is large
            self._held[space.hash] = space.with_encoder(self._encoders[config])
            return self._held[space.hash]

    def _path(self, bank_hash: str, ending: str = ".safetensors") -> Path:
        return self.folder / f"{bank_hash}{ending}"
