"""The nets of the page, by name."""

from __future__ import annotations

from benchmarks.published import keywords, pitch, speech_quality, thai

STUDIES = {
    "keywords": keywords.STUDY,
    "pitch": pitch.STUDY,
    "thai": thai.STUDY,
    "speech-quality": speech_quality.STUDY,
}
