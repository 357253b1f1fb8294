"""The wordings around a relation's words; `<X>` is where the source goes."""

SLOT = "<X>"

# Elhelo & Geva 2024 ("MAPS"), dynamic scores: they mention the source and ask for nothing.
DYNAMIC_TEMPLATES = (
    "No <X> means no",
    "The story of <X> contains",
    "This is a document about <X>",
    "When I think about <X> I think about",
)

# What asks for a relation's target, one template a relation, in our own words. Examples are words that a
# model of any size knows; a source always follows a space, so that it is the token whose static score is
# taken, and no article stands before one, because of a and an.
TASK_TEMPLATES = {
    "copying": "Say it twice: moon, moon. Say it twice: hand, hand. Say it twice: <X>,",
    "name_copying": (
        "This is Peter, please say hello to Peter. This is Laura, please say hello to Laura. "
        "This is <X>, please say hello to"
    ),
    "word_to_first_letter": (
        "The first letter of moon is m, the first letter of hand is h, the first letter of <X> is"
    ),
    "word_to_last_letter": (
        "The last letter of moon is n, the last letter of hand is d, the last letter of <X> is"
    ),
    "year_to_following": (
        "After the year 1912 came the year 1913, after the year 1984 came the year 1985, "
        "after the year <X> came the year"
    ),
    "country_to_capital": "The capital of <X> is",
    "country_to_language": (
        "In Chile people speak Spanish, in Germany people speak German, in <X> people speak"
    ),
    "object_to_superclass": (
        "Every dog is some kind of animal, every rose is some kind of flower, every <X> is some kind of"
    ),
    "product_to_company": (
        "The maker of Windows is Microsoft, the maker of Walkman is Sony, the maker of <X> is"
    ),
    "work_to_location": (
        "The nurse went to work at the hospital, the teacher went to work at the school, "
        "the <X> went to work at the"
    ),
    "adj_to_comparative": (
        "If it was tall before, now it is taller. If it was cold before, now it is colder. "
        "If it was <X> before, now it is"
    ),
    "adj_to_superlative": (
        "Of all the tall ones it is the tallest, of all the cold ones it is the coldest, "
        "of all the <X> ones it is the"
    ),
    "word_to_antonym": "The opposite of hot is cold, the opposite of up is down, the opposite of <X> is",
    "noun_to_pronoun": (
        "Instead of mother we can say she, instead of boys we can say they, instead of <X> we can say"
    ),
    "verb_to_past_tense": (
        "Today I walk and yesterday I walked. Today I sing and yesterday I sang. Today I <X> and yesterday I"
    ),
    "word_to_compound": (
        "A longer word with sun is sunlight, a longer word with rain is rainbow, a longer word with <X> is"
    ),
    "word_to_homophone": (
        "The word sea sounds like see, the word knight sounds like night, the word <X> sounds like"
    ),
    "word_to_synonym": (
        "Another word for big is large, another word for quick is fast, another word for <X> is"
    ),
    "english_to_french": (
        "The French word for house is maison, the French word for water is eau, the French word for <X> is"
    ),
    "english_to_spanish": (
        "The Spanish word for house is casa, the Spanish word for water is agua, the Spanish word for <X> is"
    ),
}
