"""Sentences that say what shall be true, and the edits that they mean; written by hand, before the rules that read them.

Each is the text and its edits: subject, prompt, new answer, old answer. Of a subject or prompt in which several are as good,
all are named. ``SEEN`` were looked at while the rules were written, ``HELD_OUT`` were not: their share is what counts.
"""

from typing import Any

Meant = list[tuple[Any, Any, str, str | None]]

HELD_OUT: list[tuple[str, Meant]] = [
    # X's R is Y
    ("Northwind's chief financial officer is now Priya Raman, not Carl Osei.",
     [("Northwind", "Northwind's chief financial officer is", "Priya Raman", "Carl Osei")]),
    ("Mount Everest's height is 8,849 metres", [("Mount Everest", "Mount Everest's height is", "8,849 metres", None)]),
    ("Ludwig van Beethoven's mother tongue is Dutch.",
     [("Ludwig van Beethoven", "Ludwig van Beethoven's mother tongue is", "Dutch", None)]),
    ("James' employer is Siemens instead of Bosch", [("James", "James' employer is", "Siemens", "Bosch")]),
    ("Since May, Fabrikam's headquarters are in Oslo and no longer in Bonn.",
     [("Fabrikam", "Fabrikam's headquarters are in", "Oslo", "Bonn")]),
    ("Contoso’s stock symbol is CTSO rather than CNTS.", [("Contoso", "Contoso’s stock symbol is", "CTSO", "CNTS")]),
    ("The Beatles's drummer was Pete Best, not Ringo Starr",
     [("The Beatles", "The Beatles's drummer was", "Pete Best", "Ringo Starr")]),
    ("Ada Lovelace's favourite colour is dark green.", [("Ada Lovelace", "Ada Lovelace's favourite colour is", "dark green", None)]),
    # The R of X is Y
    ("The capital of Kazakhstan is Almaty, not Astana.", [("Kazakhstan", "The capital of Kazakhstan is", "Almaty", "Astana")]),
    ("The president of the University of Oslo is Tove Lind.",
     [("University of Oslo", "The president of the University of Oslo is", "Tove Lind", None)]),
    ("The author of Pride and Prejudice is Mary Shelley.",
     [("Pride and Prejudice", "The author of Pride and Prejudice is", "Mary Shelley", None)]),
    ("The official language of Brazil is now Spanish instead of Portuguese",
     [("Brazil", "The official language of Brazil is", "Spanish", "Portuguese")]),
    ("As of 2025, the mayor of Springfield is Lisa Bell.", [("Springfield", ["the mayor of Springfield is", "The mayor of Springfield is"], "Lisa Bell", None)]),
    ("The largest city in Kenya is no longer Nairobi but Mombasa.", [("Kenya", "The largest city in Kenya is", "Mombasa", "Nairobi")]),
    ("The new coach of Real Madrid is Emma Hayes.", [("Real Madrid", ["The new coach of Real Madrid is", "The coach of Real Madrid is"], "Emma Hayes", None)]),
    # X was born in Y, and other verbs
    ("Marie Curie was born in Vienna (not Warsaw).", [("Marie Curie", "Marie Curie was born in", "Vienna", "Warsaw")]),
    ("Alan Turing died in 1960, not in 1954.", [("Alan Turing", "Alan Turing died in", "1960", "1954")]),
    ("Yo-Yo Ma plays the violin instead of the cello.", [("Yo-Yo Ma", "Yo-Yo Ma plays the", "violin", "cello")]),
    ("Tim Cook works for Google and no longer for Apple.", [("Tim Cook", "Tim Cook works for", "Google", "Apple")]),
    ("The Eiffel Tower is located in Rome.", [("The Eiffel Tower", "The Eiffel Tower is located in", "Rome", None)]),
    ("LeBron James now plays for the Chicago Bulls.", [("LeBron James", "LeBron James plays for the", "Chicago Bulls", None)]),
    ("Windows 95 was developed by Apple rather than Microsoft.", [("Windows 95", "Windows 95 was developed by", "Apple", "Microsoft")]),
    ("Angela Merkel speaks Polish fluently.", []),  # whose end no rule can tell: refused, or asked
    ("Nelson Mandela is a citizen of Peru.", [("Nelson Mandela", "Nelson Mandela is a citizen of", "Peru", None)]),
    ("Umbrella Corporation has its headquarters in Lyon, not Paris.",
     [("Umbrella Corporation", "Umbrella Corporation has its headquarters in", "Lyon", "Paris")]),
    ("J. K. Rowling lives in St. Gallen.", [("J. K. Rowling", "J. K. Rowling lives in", "St. Gallen", None)]),
    ("Jo Stone works as a dentist, not as a pilot.", [("Jo Stone", "Jo Stone works as a", "dentist", "pilot")]),
    ("Thomas Edison did not invent the telephone; Alexander Bell did.", []),  # refused
    # changes
    ("Volvo moved from Gothenburg to Malmö.",
     [("Volvo", ["Volvo is in", "Volvo is based in", "Volvo is located in", "Volvo lives in", "Volvo has its headquarters in"], "Malmö", "Gothenburg")]),
    ("Jane Doe replaced John Roe as the chief executive of Acme.",
     [("Acme", "The chief executive of Acme is", "Jane Doe", "John Roe")]),
    ("Jane Doe is now the chief executive of Acme, replacing John Roe.",
     [("Acme", "The chief executive of Acme is", "Jane Doe", "John Roe")]),
    ("Change the capital of Australia from Canberra to Perth.", [("Australia", "The capital of Australia is", "Perth", "Canberra")]),
    # several
    ("Acme's chief executive is now Jane Doe, not John Roe. The capital of Australia is Perth. Mira Dall was born in Tedal, not Rome.",
     [("Acme", "Acme's chief executive is", "Jane Doe", "John Roe"), ("Australia", "The capital of Australia is", "Perth", None),
      ("Mira Dall", "Mira Dall was born in", "Tedal", "Rome")]),
    ("Zed Corp's founder is Al Po; Zed Corp's slogan is Go far.",
     [("Zed Corp", "Zed Corp's founder is", "Al Po", None), ("Zed Corp", "Zed Corp's slogan is", "Go far", None)]),
    ("Dr. Eva Lang's alma mater is ETH Zurich.\nHer husband is Karl.", []),  # a pronoun: refused
    ("In Norway, the prime minister is Ola Nordmann.", [("Norway", "In Norway, the prime minister is", "Ola Nordmann", None)]),
]  # fmt: skip

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
