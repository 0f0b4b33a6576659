"""What the models are for, as every page that shows their results says it; README.md has more."""

INTENDED_USE = (
    "Research, with pictures of people who consented to it or that are licensed for it. A score is a similarity and no "
    "proof of identity; errors fall unevenly on people and on clothes that training saw seldom. Not for covert "
    "surveillance, not for identifying or following people, not for decisions about them."
)
