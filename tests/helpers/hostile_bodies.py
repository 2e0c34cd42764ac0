"""Bodies of about 8 MB, the most that a server takes, that are cheap to send and dear to parse or to validate."""

HOSTILE = {
    "ones": b'{"rows": [%s]}' % b",".join([b"1"] * 4_000_000),
    "objects": b'{"rows": [%s]}' % b",".join([b"{}"] * 2_700_000),
    "ones in a text": b'{"rows": [{"text": [%s]}]}' % b",".join([b"1"] * 4_000_000),
    "fields": b'{"rows": [{"text": "a"}], %s}' % b",".join(b'"%06x": 1' % i for i in range(650_000)),
    "fields of a row": b'{"rows": [{%s}]}' % b",".join(b'"%06x": 1' % i for i in range(650_000)),
    "depth": b"[" * 8_000_000,
    "digits": b"9" * 8_000_000,
}
