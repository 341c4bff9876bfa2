//! A job from order to result, and what its script sees.

use dormouse::gitlab::wire::Variable;
use dormouse::spool::order::JobOrder;
use dormouse::spool::record::{JobState, Outcome, ScriptEnd};
use dormouse::spool::verb::Answer;

use super::{Host, TOKEN, masked, order, step, variable};

#[test]
fn a_job_runs_and_its_log_has_head_script_and_end() {
    let host = Host::new();
    let ran = host.run(&order(&host, "env1", 1, &["echo hello", "if true; then\n  echo deep\nfi"]));
    let text = ran.text();
    for wanted in [
        "00O Running with gitlab-runner 19.4.0 (dormouse 1.2.3)",
        "00O   on pool abcdefghi, system ID: s_0123456789ab",
        "01O \u{1b}[32;1m$ echo hello\u{1b}[0;m",
        "01O hello",
        "$ if true; then # collapsed multi-line command",
        "01O deep",
        "section_start:",
        ":step_script\r\u{1b}[0K",
        "Executing \"step_script\" stage of the job script",
        "Job succeeded",
    ] {
        assert!(text.contains(wanted), "{wanted:?} is not in {text}");
    }
    let result = ran.record().result.clone().unwrap();
    assert_eq!((result.outcome, result.script, result.exit_code), (Outcome::Success, ScriptEnd::Success, 0));
    assert!(ran.record().sealed);
    assert_eq!(ran.crc32, crc32fast::hash(&ran.log));
    assert_eq!(text, host.log("env1", 1));
}

#[test]
fn sections_and_their_titles_are_those_of_gitlab_runner() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["true"]);
    order.job.steps.extend([step("release", &["true"]), step("after_script", &["true"])]);
    let ran = host.run(&order);
    let text = ran.text();
    let mut rest = text.as_str();
    for (name, title) in [
        ("prepare_executor", "Preparing the \"instance\" executor"),
        ("prepare_script", "Preparing environment"),
        ("step_script", "Executing \"step_script\" stage of the job script"),
        ("step_release", "Executing \"step_release\" stage of the job script"),
        ("after_script", "Running after_script"),
        ("cleanup_file_variables", "Cleaning up project directory and file based variables"),
    ] {
        // Begin, title in bold cyan, end.
        for mark in [
            format!(":{name}\r\u{1b}[0K"),
            format!("\u{1b}[36;1m{title}\u{1b}[0;m"),
            format!(":{name}\r\u{1b}[0K"),
        ] {
            let (_, after) =
                rest.split_once(&mark).unwrap_or_else(|| panic!("{mark:?} is not next in {text}"));
            rest = after;
        }
    }
    assert_eq!(
        (text.matches("section_start:").count(), text.matches("section_end:").count()),
        (6, 6),
        "{text}"
    );
    assert!(rest.contains("Job succeeded"), "{text}");
}

#[test]
fn a_job_of_an_https_server_is_shown_whom_the_host_trusts() {
    let host = Host::new();
    let script = "openssl x509 -in \"$CI_SERVER_TLS_CA_FILE\" -noout -subject; \
                  grep -c BEGIN \"$CI_SERVER_TLS_CA_FILE\"; env | grep -c sslCAInfo || true";
    let mut order = order(&host, "env1", 1, &[script]);
    order.runner.gitlab_url = "https://gitlab.test".into();
    order.job.git_info.repo_url = "https://gitlab.test/group/project.git".into();
    let ran = host.run(&order);
    let text = ran.text();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{text}");
    assert!(text.contains("01O subject=") && text.contains("01O 0\n"), "{text}");
    // Without TLS there is nobody to trust.
    let host = Host::new();
    let mut order = self::order(&host, "env1", 1, &["echo \"<$CI_SERVER_TLS_CA_FILE>\""]);
    order.runner.gitlab_url = "http://gitlab.test".into();
    assert!(host.run(&order).text().contains("01O <>"));
}

#[test]
fn the_scripts_exit_code_is_the_results() {
    let host = Host::new();
    let ran = host.run(&order(&host, "env1", 1, &["echo before", "(exit 42)", "echo never"]));
    let result = ran.record().result.clone().unwrap();
    assert_eq!(
        (result.outcome, result.script, result.exit_code, result.message.as_str()),
        (Outcome::ScriptFailure, ScriptEnd::Failure, 42, "exit code 42")
    );
    assert!(ran.text().contains("ERROR: Job failed: exit code 42"));
    assert!(!ran.text().contains("01O never"));
}

#[test]
fn masked_values_and_the_token_are_in_no_log_and_no_file() {
    let host = Host::new();
    let mut order = order(
        &host,
        "env1",
        1,
        &[
            "echo token $CI_JOB_TOKEN, secret $SECRET",
            "printf %s ${SECRET:0:6}; printf '%s\\n' ${SECRET:6}",
            "echo 'http://h/?private_token=abcdefgh&x=1'",
            "cat $KEY_FILE",
        ],
    );
    order.job.variables.extend([
        masked("SECRET", "s3cr3t-value"),
        Variable { file: true, ..masked("KEY_FILE", "first line of key\nsecond line of key") },
    ]);
    let ran = host.run(&order);
    let text = ran.text();
    assert_eq!(ran.record().result.as_ref().unwrap().outcome, Outcome::Success, "{text}");
    for hidden in [TOKEN, "s3cr3t-value", "private_token=a", "first line of key", "second line of key"] {
        assert!(!text.contains(hidden), "{hidden} is in {text}");
    }
    assert!(text.contains("token [MASKED], secret [MASKED]"), "{text}");
    assert!(text.contains("01O [MASKED]"), "{text}");
    for folder in ["state", "builds"] {
        assert_eq!(host.files_with(folder, TOKEN), Vec::<std::path::PathBuf>::new());
        assert_eq!(host.files_with(folder, "second line"), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn variables_expand_files_become_paths_and_the_env_file_reaches_later_stages() {
    let host = Host::new();
    let mut order = order(
        &host,
        "env1",
        1,
        &[
            "echo \"$GREETING, $CI_PROJECT_DIR\"",
            "cat \"$CONFIG\"; stat -c %a \"$CONFIG\"",
            "echo 'LATER=from the script' >> $GITLAB_ENV",
        ],
    );
    order.job.variables.extend([
        variable("NAME", "world"),
        variable("GREETING", "hello $NAME 'quoted'"),
        Variable { file: true, ..variable("CONFIG", "of $NAME\n") },
    ]);
    order.job.steps.push(step("after_script", &["echo \"after: $LATER, $CI_JOB_STATUS\""]));
    let ran = host.run(&order);
    let text = ran.text();
    let workspace = host.workspace();
    for wanted in [
        format!("hello world 'quoted', {}", workspace.display()),
        "01O of world".to_owned(),
        "01O 600".to_owned(),
        "after: from the script, success".to_owned(),
    ] {
        assert!(text.contains(&wanted), "{wanted:?} is not in {text}");
    }
    assert!(!workspace.with_extension("tmp").exists(), "the folder of file variables is left");
}

#[test]
fn without_the_flag_lines_carry_no_timestamps() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["echo plain"]);
    order.job.variables.push(variable("FF_TIMESTAMPS", "false"));
    let ran = host.run(&order);
    assert!(ran.text().starts_with("Running with gitlab-runner"), "{}", ran.text());
    assert!(ran.text().contains("\nplain\n"));
}

#[test]
fn odd_output_is_kept_readable_and_the_limit_is_kept() {
    let host = Host::new();
    let mut order = order(
        &host,
        "env1",
        1,
        &[
            r"printf 'junk \xff\xfe\n'",
            "printf 'no end'",
            "head -c 200000 /dev/zero | tr '\\0' x",
            "echo",
            "(exit 3)",
        ],
    );
    order.log_limit_bytes = 50_000;
    let ran = host.run(&order);
    let text = ran.text();
    assert!(text.contains("junk \u{fffd}\u{fffd}"), "{text}");
    assert!(text.contains("01O+"), "a long line is not cut");
    assert!(text.contains("The log is full at 50000 bytes"));
    assert!(text.ends_with("ERROR: Job failed: exit code 3\u{1b}[0;m\n"), "{}", &text[text.len() - 200..]);
    assert!(text.len() < 51_000);
}

#[test]
fn a_large_variable_and_a_name_no_shell_can_have_do_not_stop_a_job() {
    let host = Host::new();
    let mut order = order(&host, "env1", 1, &["echo ${#BIG}", "ls -A | wc -l"]);
    order.job.variables.extend([variable("BIG", &"x".repeat(300_000)), variable("not-a-name", "x")]);
    let ran = host.run(&order);
    assert!(ran.text().contains("01O 300000"), "{}", ran.text());
    assert!(ran.text().contains("01O 0\n"), "no program could be started: {}", ran.text());
    assert!(ran.text().contains("variable BIG is longer than Linux hands to a program"));
    assert!(ran.text().contains("\"not-a-name\" is not exported"));
}

#[test]
fn a_prompt_without_end_of_line_is_shown_at_once() {
    let host = Host::new();
    let go = host.path("go");
    let script = format!("printf 'Continue? '; until [ -e {} ]; do sleep 0.02; done; echo yes", go.display());
    let mut following = host.start(&order(&host, "env1", 1, &[&script]));
    following.until_log("01O Continue? ");
    std::fs::write(go, "").unwrap();
    assert!(following.into_end().text().contains("yes"));
}

#[test]
fn the_first_start_wins_and_a_second_one_streams_the_same_job() {
    let host = Host::new();
    let order = order(&host, "env1", 1, &["echo once >> ../count", "sleep 0.2"]);
    let first = host.start(&order);
    let second = host.start(&order);
    let (first, second) = (first.into_end(), second.into_end());
    assert_eq!(first.text(), second.text());
    assert_eq!(host.run(&order).text(), first.text());
    assert_eq!(std::fs::read_to_string(host.workspace().with_file_name("count")).unwrap(), "once\n");
}

#[test]
fn an_order_that_was_cut_short_starts_nothing() {
    let host = Host::new();
    let whole = serde_json::to_vec(&order(&host, "env1", 1, &["echo x"])).unwrap();
    let output = host.give(&["start"], &whole[..whole.len() / 2]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("Unsupported"));
    assert!(!host.path("state/environments/env1").exists());
}

#[test]
fn a_job_outlives_the_connection_that_started_it() {
    let host = Host::new();
    let go = host.path("go");
    let script = format!("echo begun; until [ -e {} ]; do sleep 0.02; done; echo ended", go.display());
    let mut following = host.start(&order(&host, "env1", 1, &[&script]));
    following.until_log("begun");
    let offset = following.streamed.log.len() as u64;
    let before = following.streamed.log.clone();
    following.cut();
    assert_eq!(host.status("env1", 1).state, JobState::Running);
    let attached = host.attach("env1", 1, offset);
    std::fs::write(go, "").unwrap();
    let after = attached.into_end();
    assert_eq!(after.first_offset, Some(offset));
    let whole = [before, after.log.clone()].concat();
    assert_eq!(String::from_utf8(whole.clone()).unwrap(), host.log("env1", 1));
    assert_eq!(after.crc32, crc32fast::hash(&whole));
}

#[test]
fn hello_and_list_tell_what_the_host_is_and_has() {
    let host = Host::new();
    let Answer::Hello(hello) = host.ask("hello --pool ns/p --pool-uid pool-uid --epoch 1") else {
        panic!("no hello");
    };
    assert_eq!((hello.claim.epoch, hello.claim.pool.as_str()), (1, "ns/p"));
    assert_eq!(hello.missing_programs, Vec::<String>::new());
    host.run(&order(&host, "env1", 1, &["true"]));
    let Answer::List(listed) = host.ask("list --pool-uid pool-uid --epoch 1") else { panic!("no list") };
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].environment.workspace, host.workspace().to_str().unwrap());
    assert!(listed[0].jobs[0].record.sealed);
    host.release("env1");
    assert!(host.workspace().is_dir(), "the workspace of a plain job stays for the next fetch");
    assert_eq!(host.ask("list --pool-uid pool-uid --epoch 1"), Answer::List(Vec::new()));
    assert_eq!(host.ask("unclaim --pool-uid pool-uid --epoch 1"), Answer::Done);
    assert!(matches!(host.ask("stat"), Answer::Stat(stat) if stat.cpus > 0 && stat.builds_free_bytes > 0));
}

#[test]
fn image_and_services_are_said_to_be_ignored() {
    let host = Host::new();
    let mut order: JobOrder = order(&host, "env1", 1, &["true"]);
    order.job.image = serde_json::json!({"name": "debian:12"});
    order.notices.push("the environment will not sleep".into());
    let text = host.run(&order).text();
    assert!(text.contains("image and services are ignored"), "{text}");
    assert!(text.contains("WARNING: the environment will not sleep"), "{text}");
}
