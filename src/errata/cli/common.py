"""What commands share, by one name: options, output, what the user gave, and models and methods made of it.

Nothing here imports torch or transformers before it is needed: ``errata --help`` must answer at once.
"""

from errata.cli.flags import AnyModel as AnyModel
from errata.cli.flags import Chat as Chat
from errata.cli.flags import Data as Data
from errata.cli.flags import Device as Device
from errata.cli.flags import Dtype as Dtype
from errata.cli.flags import Force as Force
from errata.cli.flags import Json as Json
from errata.cli.flags import MethodName as MethodName
from errata.cli.flags import Model as Model
from errata.cli.flags import Quiet as Quiet
from errata.cli.flags import RayAddress as RayAddress
from errata.cli.flags import Read as Read
from errata.cli.flags import Seed as Seed
from errata.cli.flags import Settings as Settings
from errata.cli.flags import SettingsFile as SettingsFile
from errata.cli.flags import System as System
from errata.cli.flags import Temperature as Temperature
from errata.cli.flags import Threads as Threads
from errata.cli.flags import TopP as TopP
from errata.cli.flags import TrustRemoteCode as TrustRemoteCode
from errata.cli.flags import Workers as Workers
from errata.cli.given import LONGEST_TEXT as LONGEST_TEXT
from errata.cli.given import check_output as check_output
from errata.cli.given import data_for as data_for
from errata.cli.given import named_values as named_values
from errata.cli.given import read_text as read_text
from errata.cli.given import texts_in as texts_in
from errata.cli.making import attached as attached
from errata.cli.making import check_settings_file as check_settings_file
from errata.cli.making import check_workers as check_workers
from errata.cli.making import load_model as load_model
from errata.cli.making import make_method as make_method
from errata.cli.making import worker_pool as worker_pool
from errata.cli.terminal import TEXT_WIDTH as TEXT_WIDTH
from errata.cli.terminal import each_warning_once as each_warning_once
from errata.cli.terminal import is_interactive as is_interactive
from errata.cli.terminal import make_table as make_table
from errata.cli.terminal import one_line as one_line
from errata.cli.terminal import print_json as print_json
from errata.cli.terminal import say as say
from errata.cli.terminal import set_up_logs as set_up_logs
from errata.cli.terminal import show_logs as show_logs
from errata.cli.terminal import size as size
from errata.cli.terminal import stderr as stderr
from errata.cli.terminal import stdout as stdout
from errata.cli.terminal import step as step
from errata.cli.terminal import track as track

INTERRUPTED = 130
PREPARED = "(models of the world are trained to be editable: this shows that a method works, not how well)"
