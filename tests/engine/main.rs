//! What a GPU does, from one instruction to whole models, as one program that can be carried to a machine with
//! a card.
//!
//! `TEST_DEVICE` says what it runs on:
//!
//! | value | kernels and instructions | everything else |
//! | --- | --- | --- |
//! | unset | the emulator, in three orders, checked | the emulator as a driver |
//! | `cuda` | the driver of this machine and its card | the same |
//! | `emulated-driver` | as with `cuda`, but the driver is the emulator | the emulator as a driver |
//!
//! On a driver each kernel runs twice and must leave the same bits. With `TEST_DUMP=FOLDER`, what a kernel was
//! given and what it left is written there when a number is wrong. `scripts/gpu_check.sh` starts each test of a
//! kernel as a process of its own.

#![allow(clippy::print_stdout, reason = "what is left out is said")]

#[path = "../common/mod.rs"]
mod common;

mod device;
mod instructions;
mod kernels;
mod loading;
mod models;
mod queue;
mod streaming;
