"""Encryption of what is stored, bound to its place, with a change of keys while it is in use.

    python examples/encryption.py      (needs: pip install 'agentrt[security]')

Keys are secrets: in production they come by reference (`KeyRing.from_references`). Here they are made on the spot.
"""

from agentrt.security.encryption import DecryptionFailed, Encryption
from agentrt.security.keys import KeyRing, new_key


def main() -> None:
    old, new = new_key(id="2025"), new_key(id="2026")

    # What it belongs to is the context: the token opens there and nowhere else.
    encryption = Encryption(KeyRing.from_texts(old))
    table = {
        place: encryption.encrypt("Ada likes red wine", context=place) for place in ("notes/1", "notes/2")
    }
    print(encryption.decrypt_text(table["notes/1"], context="notes/1"))
    try:
        encryption.decrypt(table["notes/1"], context="notes/2")
    except DecryptionFailed as error:
        print(str(error).partition(":")[0])

    # A new key first, the old one after it: everything can still be read, and moves to the new one bit by bit.
    encryption = Encryption(KeyRing.from_texts(new, old))
    moved = 0
    for place, token in table.items():
        if not encryption.is_current(token):
            table[place] = encryption.rewrap(token, context=place)
            moved += 1
    print(moved, "moved to", encryption.ring.primary)

    # Then the old key goes.
    encryption = Encryption(KeyRing.from_texts(new))
    print(encryption.decrypt_text(table["notes/2"], context="notes/2"))


if __name__ == "__main__":
    main()
