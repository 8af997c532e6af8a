job "tes" {
  type = "batch"

  parameterized {
    payload = "required"
  }

  group "task" {
    restart {
      attempts = 5
      interval = "24h"
      delay    = "15s"
      mode     = "fail"
    }

    reschedule {
      attempts  = 3
      interval  = "24h"
      unlimited = false
    }

    task "deckhand" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      dispatch_payload {
        file = "task.json"
      }

      config {
        command = "/usr/bin/deckhand"
        args    = ["run", "${NOMAD_TASK_DIR}/task.json", "--exit-policy", "engine", "--lock-wait", "10m"]
      }
    }
  }
}
