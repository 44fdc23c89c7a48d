"""Plain sentences that the 8-bit encoder is fitted and checked on, so that a model needs no data beside its files."""

from __future__ import annotations

__all__ = ["CHECK", "FIT"]

# Long and short, with names, numbers, questions, code and other scripts: what matters is that each channel of a layer
# is seen at its usual largest.
FIT = (
    "The bridge over the river was finished in 1887 and carries two railway tracks.",
    "Marie Novak was born in Brno, studied chemistry in Vienna and later led a laboratory in Oslo.",
    "How long does it take to boil an egg at high altitude?",
    "The committee rejected the proposal by nine votes to four, citing its cost.",
    "No.",
    "a",
    "It was, I am told, the finest soup ever served on a moving train; I had two bowls and regretted neither.",
    "def mean(values): return sum(values) / len(values)  # raises ZeroDivisionError when empty",
    "Temperatures will fall to -12 °C by Friday, with snow above 600 m.",
    "Great, another meeting that could have been an e-mail.",
    "The company reported revenue of $4.2 billion, up 7.5% on the year before.",
    "Der Zug nach München hat heute leider zwanzig Minuten Verspätung.",
    "El río nace en las montañas y desemboca en el mar.",
    "東京は日本の首都です。",
    "The film is dull, badly acted and about an hour too long.",
    "An absolute joy from start to finish, with a score you will hum for weeks.",
    "Mix the flour, sugar and salt; add the butter in small pieces; then knead until smooth.",
    "Lyon, Marseille, Toulouse, Nice, Nantes, Strasbourg",
    "country: France; capital: Paris; population: 68,000,000; currency: euro",
    "The patient was given 20 mg of the drug twice daily for six weeks.",
    "Why did nobody tell me that the museum is closed on Mondays?!",
    "Kepler-22b is a planet that orbits within the habitable zone of a star like the Sun.",
    "She scored twice in the second half and the home side held on to win 3-2.",
    "Whoever holds the copyright may license the work under terms of their choosing, provided that earlier licences "
    "which were granted without limit of time remain in force and that notice is given in writing to every party.",
)

CHECK = (
    "The old mill stands at the edge of the village, beside a stream.",
    "Ada Lund wrote three novels before she turned to poetry.",
    "What is the tallest building in South America?",
    "Oh sure, because waiting on hold for an hour is exactly how I like to spend my evenings.",
    "The treaty was signed on 14 May 1955 by eight states.",
    "Yes, of course.",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name;",
    "A slow, tender film that earns every one of its tears.",
    "La biblioteca abre a las nueve de la mañana.",
    "subject: Lake Vanern; predicate: located in; object: Sweden",
    "Add 250 ml of water and simmer for ten minutes, stirring now and then.",
    "Shares of the airline fell by 11 percent after it cut its forecast for the year.",
    "The enzyme splits the sugar into two smaller molecules.",
    "They lost the first set 6-1 and won the next two.",
    "He plays the cello in the city's symphony orchestra and teaches at its conservatory.",
    "Please restart the router, wait for the green light, and then try to connect once more.",
)
