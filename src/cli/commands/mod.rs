//! One file per verb: its arguments, and what it does with them.

pub mod after_service;
pub mod check;
pub mod daemon;
pub mod delete;
pub mod demo;
pub mod describe;
pub mod env;
pub mod events;
pub mod init;
pub mod kill;
pub mod list;
pub mod logs;
pub mod ping;
pub mod reload;
pub mod reread;
pub mod restart;
pub mod sample_app;
pub mod scale;
pub mod signal;
pub mod start;
pub mod startup;
pub mod stop;
pub mod unstartup;
pub mod up;
pub mod upgrade;
pub mod verify;
