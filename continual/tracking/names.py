"""Names of users as MLflow's models and files may be called: neither takes every sign, and none may become a path."""

from hashlib import sha256

ESCAPE = "="
LONGEST = 160  # bytes; a file's name may have 255, a model's 256
SHORT = 16  # hexadecimal digits of a digest that stands for the rest of a longer name


def escape_name(name: str) -> str:
    """`name` with `=` and two digits for each byte of other signs than letters and digits; `quopri` turns it back.

    A name that would be too long is cut, and its digest added.

    >>> import quopri
    >>> plain("../news/2024:sport"), quopri.decodestring(plain("../news/2024:sport")).decode()
    ('=2E.=2Fnews=2F2024=3Asport', '../news/2024:sport')
    """
    signs = [_escaped(sign, first=place == 0) for place, sign in enumerate(name)]
    if len("".join(signs).encode()) <= LONGEST:
        return "".join(signs)
    while len("".join(signs).encode()) > LONGEST - SHORT - 2 * len(ESCAPE):
        signs.pop()
    return f"{''.join(signs)}{ESCAPE * 2}{sha256(name.encode(errors='surrogatepass')).hexdigest()[:SHORT]}"


def _escaped(sign: str, *, first: bool) -> str:
    if sign.isalnum() or sign in "-_@" or (sign == "." and not first):
        return sign
    return "".join(f"{ESCAPE}{byte:02X}" for byte in sign.encode(errors="surrogatepass"))
