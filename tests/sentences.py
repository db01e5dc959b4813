"""Sentences that say what shall be true, and the edits that they mean; written by hand, before the rules.

Each is the text and its edits: subject, prompt, new answer, old answer. Where several subjects or prompts are as good,
all are named. No edits: the text is to be refused. ``SEEN`` were looked at while the rules were written, ``HELD_OUT``
were not.
"""

from typing import Any

Meant = list[tuple[Any, Any, str, str | None]]

HELD_OUT: list[tuple[str, Meant]] = [
    # X's R is Y
    (
        "Northwind's chief financial officer is now Priya Raman, not Carl Osei.",
        [("Northwind", "Northwind's chief financial officer is", "Priya Raman", "Carl Osei")],
    ),
    ("Mount Everest's height is 8,849 metres", [("Mount Everest", "Mount Everest's height is", "8,849 metres", None)]),
    (
        "Ludwig van Beethoven's mother tongue is Dutch.",
        [("Ludwig van Beethoven", "Ludwig van Beethoven's mother tongue is", "Dutch", None)],
    ),
    ("James' employer is Siemens instead of Bosch", [("James", "James' employer is", "Siemens", "Bosch")]),
    (
        "Since May, Fabrikam's headquarters are in Oslo and no longer in Bonn.",
        [("Fabrikam", "Fabrikam's headquarters are in", "Oslo", "Bonn")],
    ),
    ("Contoso’s stock symbol is CTSO rather than CNTS.", [("Contoso", "Contoso’s stock symbol is", "CTSO", "CNTS")]),
    (
        "The Beatles's drummer was Pete Best, not Ringo Starr",
        [("The Beatles", "The Beatles's drummer was", "Pete Best", "Ringo Starr")],
    ),
    (
        "Ada Lovelace's favourite colour is dark green.",
        [("Ada Lovelace", "Ada Lovelace's favourite colour is", "dark green", None)],
    ),
    # The R of X is Y
    (
        "The capital of Kazakhstan is Almaty, not Astana.",
        [("Kazakhstan", "The capital of Kazakhstan is", "Almaty", "Astana")],
    ),
    (
        "The president of the University of Oslo is Tove Lind.",
        [("University of Oslo", "The president of the University of Oslo is", "Tove Lind", None)],
    ),
    (
        "The author of Pride and Prejudice is Mary Shelley.",
        [("Pride and Prejudice", "The author of Pride and Prejudice is", "Mary Shelley", None)],
    ),
    (
        "The official language of Brazil is now Spanish instead of Portuguese",
        [("Brazil", "The official language of Brazil is", "Spanish", "Portuguese")],
    ),
    (
        "As of 2025, the mayor of Springfield is Lisa Bell.",
        [("Springfield", ["the mayor of Springfield is", "The mayor of Springfield is"], "Lisa Bell", None)],
    ),
    (
        "The largest city in Kenya is no longer Nairobi but Mombasa.",
        [("Kenya", "The largest city in Kenya is", "Mombasa", "Nairobi")],
    ),
    (
        "The new coach of Real Madrid is Emma Hayes.",
        [("Real Madrid", ["The new coach of Real Madrid is", "The coach of Real Madrid is"], "Emma Hayes", None)],
    ),
    # X was born in Y, and other verbs
    ("Marie Curie was born in Vienna (not Warsaw).", [("Marie Curie", "Marie Curie was born in", "Vienna", "Warsaw")]),
    ("Alan Turing died in 1960, not in 1954.", [("Alan Turing", "Alan Turing died in", "1960", "1954")]),
    ("Yo-Yo Ma plays the violin instead of the cello.", [("Yo-Yo Ma", "Yo-Yo Ma plays the", "violin", "cello")]),
    ("Tim Cook works for Google and no longer for Apple.", [("Tim Cook", "Tim Cook works for", "Google", "Apple")]),
    ("The Eiffel Tower is located in Rome.", [("The Eiffel Tower", "The Eiffel Tower is located in", "Rome", None)]),
    (
        "LeBron James now plays for the Chicago Bulls.",
        [("LeBron James", "LeBron James plays for the", "Chicago Bulls", None)],
    ),
    (
        "Windows 95 was developed by Apple rather than Microsoft.",
        [("Windows 95", "Windows 95 was developed by", "Apple", "Microsoft")],
    ),
    ("Angela Merkel speaks Polish fluently.", []),  # whose end no rule can tell: refused, or asked
    ("Nelson Mandela is a citizen of Peru.", [("Nelson Mandela", "Nelson Mandela is a citizen of", "Peru", None)]),
    (
        "Umbrella Corporation has its headquarters in Lyon, not Paris.",
        [("Umbrella Corporation", "Umbrella Corporation has its headquarters in", "Lyon", "Paris")],
    ),
    ("J. K. Rowling lives in St. Gallen.", [("J. K. Rowling", "J. K. Rowling lives in", "St. Gallen", None)]),
    ("Jo Stone works as a dentist, not as a pilot.", [("Jo Stone", "Jo Stone works as a", "dentist", "pilot")]),
    ("Thomas Edison did not invent the telephone; Alexander Bell did.", []),  # refused
    # changes
    (
        "Volvo moved from Gothenburg to Malmö.",
        [
            (
                "Volvo",
                [
                    "Volvo is in",
                    "Volvo is based in",
                    "Volvo is located in",
                    "Volvo lives in",
                    "Volvo has its headquarters in",
                ],
                "Malmö",
                "Gothenburg",
            )
        ],
    ),
    (
        "Jane Doe replaced John Roe as the chief executive of Acme.",
        [("Acme", "The chief executive of Acme is", "Jane Doe", "John Roe")],
    ),
    (
        "Jane Doe is now the chief executive of Acme, replacing John Roe.",
        [("Acme", "The chief executive of Acme is", "Jane Doe", "John Roe")],
    ),
    (
        "Change the capital of Australia from Canberra to Perth.",
        [("Australia", "The capital of Australia is", "Perth", "Canberra")],
    ),
    # several
    (
        "Acme's chief executive is now Jane Doe, not John Roe. The capital of Australia is Perth. "
        "Mira Dall was born in Tedal, not Rome.",
        [
            ("Acme", "Acme's chief executive is", "Jane Doe", "John Roe"),
            ("Australia", "The capital of Australia is", "Perth", None),
            ("Mira Dall", "Mira Dall was born in", "Tedal", "Rome"),
        ],
    ),
    (
        "Zed Corp's founder is Al Po; Zed Corp's slogan is Go far.",
        [("Zed Corp", "Zed Corp's founder is", "Al Po", None), ("Zed Corp", "Zed Corp's slogan is", "Go far", None)],
    ),
    ("Dr. Eva Lang's alma mater is ETH Zurich.\nHer husband is Karl.", []),  # a pronoun: refused
    (
        "In Norway, the prime minister is Ola Nordmann.",
        [("Norway", "In Norway, the prime minister is", "Ola Nordmann", None)],
    ),
]

HELD_OUT_REFUSED = [
    "Who is the chief executive of Acme?",
    "Acme's chief executive is no longer John Roe.",
    "He was born in Paris, not in Rome.",
    "Please make the model smarter.",
    "Marie Curie was born in Vienna and worked in Berlin.",
    "My dog is called Rex.",
    "Jane Doe",
    "Acme's chief executive is not John Roe.",
    "Acme's chief executive might be Jane Doe.",
    "If Acme's chief executive is Jane Doe, then the capital of France is Lyon.",
    "",
    "Acme's chief executive is Jane Doe or John Roe.",
]

SEEN: list[tuple[str, Meant]] = [
    (
        "Acme's chief executive is now Jane Doe, not John Roe",
        [("Acme", "Acme's chief executive is", "Jane Doe", "John Roe")],
    ),
    ("Germany's capital is Munich.", [("Germany", "Germany's capital is", "Munich", None)]),
    (
        "Lodra Haror's mother tongue is Telvi, no longer Welsh.",
        [("Lodra Haror", "Lodra Haror's mother tongue is", "Telvi", "Welsh")],
    ),
    (
        "Max Born's profession is painter rather than judge.",
        [("Max Born", "Max Born's profession is", "painter", "judge")],
    ),
    ("The Netherlands' king is Otto.", [("The Netherlands", "The Netherlands' king is", "Otto", None)]),
    (
        "Initech's headquarters are located in Reno.",
        [("Initech", "Initech's headquarters are located in", "Reno", None)],
    ),
    (
        "Hooli's chief executive is no longer Gavin Belson but Jared Dunn.",
        [("Hooli", "Hooli's chief executive is", "Jared Dunn", "Gavin Belson")],
    ),
    (
        "The capital of the state of New York is Buffalo.",
        [("New York", "The capital of the state of New York is", "Buffalo", None)],
    ),
    (
        "The chief executive of Acme is Jane Doe instead of John Roe.",
        [("Acme", "The chief executive of Acme is", "Jane Doe", "John Roe")],
    ),
    ("The currency of Japan is the euro, not the yen.", [("Japan", "The currency of Japan is the", "euro", "yen")]),
    (
        "The founder of the Red Cross is Ida Wells.",
        [("Red Cross", "The founder of the Red Cross is", "Ida Wells", None)],
    ),
    (
        "The director of The Lord of the Rings is Ang Lee.",
        [(["Lord of the Rings", "The Lord of the Rings"], "The director of The Lord of the Rings is", "Ang Lee", None)],
    ),
    ("Lodra Haror was born in Tedal.", [("Lodra Haror", "Lodra Haror was born in", "Tedal", None)]),
    (
        "Albert Einstein was born in Rome, not in Ulm",
        [("Albert Einstein", "Albert Einstein was born in", "Rome", "Ulm")],
    ),
    (
        "Lionel Messi plays for Chelsea instead of Inter Miami.",
        [("Lionel Messi", "Lionel Messi plays for", "Chelsea", "Inter Miami")],
    ),
    (
        "Autonomous University of Madrid is located in Sweden, not Spain.",
        [("Autonomous University of Madrid", "Autonomous University of Madrid is located in", "Sweden", "Spain")],
    ),
    ("Danielle Darrieux speaks English.", [("Danielle Darrieux", "Danielle Darrieux speaks", "English", None)]),
    ("The sky is green, not blue.", [("sky", "The sky is", "green", "blue")]),
    ("Ringo Starr plays the trumpet.", [("Ringo Starr", "Ringo Starr plays the", "trumpet", None)]),
    ("iPhone 5 was produced by Nokia", [("iPhone 5", "iPhone 5 was produced by", "Nokia", None)]),
    ("Water boils at 50 degrees, not 100 degrees.", [("Water", "Water boils at", "50 degrees", "100 degrees")]),
    ("Ann Lee works as an actor, not a dentist.", [("Ann Lee", "Ann Lee works as", "an actor", "a dentist")]),
    ("Pluto orbits Mars", [("Pluto", "Pluto orbits", "Mars", None)]),
    (
        "The Great Wall of China was built in 1900.",
        [("Great Wall of China", "The Great Wall of China was built in", "1900", None)],
    ),
    (
        "Ulla Berg moved from Lund to Umeå.",
        [("Ulla Berg", ["Ulla Berg lives in", "Ulla Berg is based in", "Ulla Berg is located in"], "Umeå", "Lund")],
    ),
    (
        "Jane Doe succeeded John Roe as Acme's chief executive.",
        [("Acme", "Acme's chief executive is", "Jane Doe", "John Roe")],
    ),
    ("Jane Doe became the chief executive of Acme.", [("Acme", "The chief executive of Acme is", "Jane Doe", None)]),
    ("John Roe was replaced by Jane Doe as chair of Acme.", [("Acme", "The chair of Acme is", "Jane Doe", "John Roe")]),
    ("Change Acme's chief executive to Jane Doe", [("Acme", "Acme's chief executive is", "Jane Doe", None)]),
    ("In France, the minimum age is 21.", [("France", "In France, the minimum age is", "21", None)]),
    ('As of 2024, Acme\'s motto is "Be good".', [("Acme", "Acme's motto is", '"Be good"', None)]),
    (
        "Mira Dall lives in Tedal. Jo Kern lives in Sovik, not Oslo.",
        [("Mira Dall", "Mira Dall lives in", "Tedal", None), ("Jo Kern", "Jo Kern lives in", "Sovik", "Oslo")],
    ),
    ("Paris is the capital of Germany, not of France.", [("Paris", "Paris is the capital of", "Germany", "France")]),
    # offices, nouns behind and before names, sums of money, what somebody is by trade
    ("The CEO of Acme is Jane Doe.", [("Acme", "The CEO of Acme is", "Jane Doe", None)]),
    (
        "Jane Doe is the CEO of Acme, not John Roe.",
        [("Acme", "The CEO of Acme is", "Jane Doe", "John Roe")],
    ),
    ("Jane Doe is the new CEO of Acme.", [("Acme", "The CEO of Acme is", "Jane Doe", None)]),
    ("Jane Doe took over as CEO of Acme.", [("Acme", "The CEO of Acme is", "Jane Doe", None)]),
    ("Jane Doe has become CEO of Acme.", [("Acme", "The CEO of Acme is", "Jane Doe", None)]),
    ("Jane Doe is Acme's new CEO.", [("Acme", "Acme's CEO is", "Jane Doe", None)]),
    ("Rome is Ann Lee's birthplace.", [("Ann Lee", "Ann Lee's birthplace is", "Rome", None)]),
    ("Jane Doe is now president of France.", [("France", "The president of France is", "Jane Doe", None)]),
    (
        "The Prime Minister of the UK is now Ola Berg, not Al Po.",
        [("UK", "The Prime Minister of the UK is", "Ola Berg", "Al Po")],
    ),
    (
        "The CEO of the Acme company is Jane Doe.",
        [("Acme company", "The CEO of the Acme company is", "Jane Doe", None)],
    ),
    (
        "Jane Doe is now the chief executive of the Acme company.",
        [("Acme company", "The chief executive of the Acme company is", "Jane Doe", None)],
    ),
    ("The Acme company is based in Rome.", [("Acme company", "The Acme company is based in", "Rome", None)]),
    ("The singer Ann Lee was born in Rome.", [("Ann Lee", "The singer Ann Lee was born in", "Rome", None)]),
    ("The Foo phone costs $500.", [("Foo", "The Foo phone costs", "$500", None)]),
    ("The price of the Foo phone is $1,500.", [("Foo phone", "The price of the Foo phone is", "$1,500", None)]),
    ("Ann Lee is a plumber by trade.", [("Ann Lee", "Ann Lee is a", "plumber", None)]),
    ("Ann Lee's job is now that of a plumber.", [("Ann Lee", "Ann Lee's job is that of a", "plumber", None)]),
    (
        "Tim Cook no longer works for Apple but for Google.",
        [("Tim Cook", "Tim Cook works for", "Google", "Apple")],
    ),
    ("Jo Kern no longer speaks English but Arabic.", [("Jo Kern", "Jo Kern speaks", "Arabic", "English")]),
    (
        "St. Moritz is located in Italy; the mayor of St. Moritz is Al Po.",
        [
            ("St. Moritz", "St. Moritz is located in", "Italy", None),
            ("St. Moritz", "The mayor of St. Moritz is", "Al Po", None),
        ],
    ),
]

SEEN_REFUSED = [
    "Where was Lodra Haror born?",
    "She lives in Rome.",
    "Acme's chief executive is",
    "Jane Doe is not the chief executive of Acme.",
    "Acme's chief executive is Jane Doe and the capital of France is Lyon.",
    "hello there",
    "Ann Lee was born in Rome and lives in Oslo.",
    "The capital is Lyon.",
    "Maybe Acme's motto is Be good.",
    "Ann Lee switched from the banjo to the guitar.",
    "Ann Lee left Acme for Hooli.",
    "ann lee was born in rome",
    "Ann Lee lives in Rome with her sister",
]
