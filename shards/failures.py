"""What is said when a storage fails: the place, what was wanted there, the storage's own words, a remedy."""

from shards.errors import DataError
from shards.retry import StillFailing, is_refusal


def storage_failure(
    address: str, what: str, error: Exception, *, remote: bool = True, kept: str = ""
) -> DataError:
    """The error that says that `what` ("reading", …) failed at an address, and why.

    remote: whether a server was asked. kept: what the next run finds of this one ("what was finished is kept:
    "), for a remedy that is to run it again.
    """
    said = " ".join(str(error).split()) or type(error).__name__  # some servers answer in paragraphs
    if isinstance(error, StillFailing):
        remedy = f"{kept}run the same command again when the storage answers"
        return DataError(f"{address}: {what} failed after {error.tries} tries: {said}; {remedy}")
    if remote and is_refusal(error):
        remedy = "check the credentials in use and what they may do here"
        return DataError(f"{address}: {what} failed: {said}; {remedy}")
    return DataError(f"{address}: {what} failed: {said}")
