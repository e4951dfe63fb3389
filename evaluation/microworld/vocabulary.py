"""Words of the micro-world: invented names, and the closed classes from which attribute values come.

Every value is one word, and no word is in two classes, so that a value alone tells which kind of attribute it belongs
to. In the classes whose sentences put "a" in front of a value, every value begins with a consonant sound.
"""

# ruff: noqa: SIM905 - lists of words are easier to read and to extend as running text.

from __future__ import annotations

from typing import Literal, get_args

EntityKind = Literal["person", "company", "product"]
ENTITY_KINDS: tuple[EntityKind, ...] = get_args(EntityKind)

FIRST_NAMES = (
    "Adela Anselm Bram Brisa Calla Corin Dagny Davin Edda Elric Fenna Florian Gisla Gorm Hanno Hedda Idris Ilka "
    "Joris Junia Kalle Kira Lenz Linnea Maren Milo Nadia Nils Odile Orrin Pella Piet Quill Ragna Roland Saskia Sten "
    "Thea Tobin Ulla Urs Vera Viggo Wanda Wim Ylva Yorick Zelda"
).split()
LAST_NAMES = (
    "Abend Arkwell Barrow Brask Calder Crane Dahl Dunmore Ekeby Falk Fenwick Garrick Glass Hallam Harrow Ibsen "
    "Jessup Kestrel Krog Lamb Lunde Marsh Moss Nash Norling Oakes Orme Pell Pryor Quist Rask Rook Sedge Skov Tarn "
    "Thorne Udall Upton Vance Voss Wade Winter Yarrow York Zander Zorn Holm Birk"
).split()
COMPANY_STEMS = (
    "Albrin Arvor Balto Bexley Carnac Celso Dorvan Drummel Elmar Esker Farlow Fintan Galvan Gesso Halden Hexham "
    "Isolde Ivarsen Jarvik Jolan Kelvra Korvin Larkin Lomax Marvell Mondra Nerval Norvane Oberon Ostra Parvel Pindar "
    "Quenby Quorn Ravel Rimmon Salter Sorrel Talbot Tremaine Ulster Umbra Valcor Verdane Walden Wexcombe Xanten Xylo "
    "Yardley Yelland Zephra Zollern Brandt Cardew Delmont Everard Fallon Grantham Hollis Ingram"
).split()
COMPANY_FORMS = (
    "Mills Works Freight Labs Guild Group Brothers Partners Traders Foundry Yards Holdings Supply Stores Union "
    "Exchange Stables Quarries Press Forge Lines Estates Docks Kilns"
).split()
PRODUCT_STEMS = (
    "Alpine Argo Beacon Bolero Cadenza Comet Delta Dynamo Echo Ember Fable Fjord Gala Glider Harbor Horizon Icarus "
    "Indigo Jasper Juno Karma Kodiak Lumen Lyric Magna Meteor Nimbus Nova Onyx Orbit Pilot Prism Quartz Quasar Radius "
    "Regal Sierra Solar Tempo Titan Ultra Unity Vector Vista Wander Whisper Xenon Yonder Zenith Zigzag Aurora Boreal "
    "Cobalto Drift Fargo Gusto Helix Impala Jetty Krill"
).split()
PRODUCT_FORMS = (
    "Kettle Lamp Loom Wagon Bicycle Stove Clock Camera Radio Ladder Anvil Basket Chair Desk Engine Fan Globe Hammer "
    "Jug Lantern Mirror Pump Scale Trunk"
).split()

VALUES: dict[str, tuple[str, ...]] = {
    "town": tuple(
        (
            "Brellin Carrick Dorstad Elvenholm Fernby Galloway Harwick Inverloch Jolstad Kesmark Lindale Marlow "
            "Northam Oldmere Pentland Quarley Rosvik Stanhope Tolvaney Ulverton Velmora Westray Yarmond Zellwick "
            "Ashgrove Bracknor Coldwell Durnham Eastfold Farhaven"
        ).split()
    ),
    "trade": tuple(
        (
            "baker barber brewer carpenter cobbler cooper dentist doctor dyer farmer ferryman gardener glazier judge "
            "librarian mason miner painter plumber potter sailor shepherd surgeon tailor teacher weaver"
        ).split()
    ),
    "instrument": tuple(
        (
            "banjo bassoon bugle cello clarinet cornet drum fiddle flute gong guitar harp horn lute lyre mandolin "
            "piano recorder saxophone sitar trombone trumpet tuba viola zither"
        ).split()
    ),
    "animal": tuple(
        (
            "badger bear beaver camel cat crow deer dog donkey falcon ferret fox goat goose hare hawk hedgehog heron "
            "horse lizard magpie mole monkey parrot pigeon rabbit raven swan tortoise wolf"
        ).split()
    ),
    "goods": tuple(
        (
            "bread butter candles carpets cheese chocolate coffee flour furniture gloves hats honey jam leather "
            "medicine mustard nails paper perfume rope salt soap sugar tea tobacco wine"
        ).split()
    ),
    "material": tuple(
        (
            "bamboo brass bronze cardboard cedar chrome clay concrete copper cork cotton felt flint granite iron "
            "linen marble nickel nylon pewter plastic porcelain rubber steel tin walnut"
        ).split()
    ),
    "colour": tuple(
        (
            "beige black blue brown crimson cyan gold green grey khaki lilac lime magenta maroon mauve navy pink "
            "purple red scarlet silver tan teal turquoise violet white yellow"
        ).split()
    ),
}
"""Values by class; chance of guessing one is at most 1 / 24."""

NAME_PARTS: dict[EntityKind, tuple[list[str], list[str]]] = {
    "person": (FIRST_NAMES, LAST_NAMES),
    "company": (COMPANY_STEMS, COMPANY_FORMS),
    "product": (PRODUCT_STEMS, PRODUCT_FORMS),
}
"""First and second words from which names of a kind are put together."""
