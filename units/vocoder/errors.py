"""Why a vocoder, its files, its units or its training data cannot be used."""

from __future__ import annotations

from units.runtime.refusals import Reason, RefusedError


class VocoderReason(Reason):
    """The code of a VocoderError."""

    INVALID_SETTING = "invalid_setting"
    """a number in a head's settings, or in a recipe, is outside its range"""
    NO_UNITS = "no_units"
    """there is no unit to decode"""
    UNKNOWN_SPEAKER = "unknown_speaker"
    """the vocoder has no speaker of this name or number"""
    SPEAKER_COUNT = "speaker_count"
    """the number of speakers is not that of the utterances, or of the speaker table"""
    NO_DURATION_PREDICTOR = "no_duration_predictor"
    """durations are to be predicted by a vocoder that cannot"""
    FRAME_RATE = "frame_rate"
    """the codebook does not have 50 frames a second"""
    INVALID_CONFIG = "invalid_config"
    """a vocoder's config.json is not one, or lacks a field, or has an unknown one"""
    UNSUPPORTED = "unsupported"
    """the config describes a network that this version does not have"""
    OTHER_WEIGHTS = "other_weights"
    """the weights do not fit the config"""
    NOT_TENSORS = "not_tensors"
    """a file of weights holds something else than the tensors of a generator"""
    OTHER_CODEBOOK_SIZE = "other_codebook_size"
    """the vocoder and the codebook have different numbers of units"""
    OTHER_RECIPE = "other_recipe"
    """a checkpoint was written with another recipe or codebook"""
    OTHER_AUDIO = "other_audio"
    """the units are not those of the audio file"""
    NOTHING_TO_TRAIN_ON = "nothing_to_train_on"
    """no utterance of the manifest is of the speaker, or none has units"""


class VocoderError(RefusedError):
    """A vocoder, its files, its units or its training data cannot be used. `reason` is a VocoderReason."""
